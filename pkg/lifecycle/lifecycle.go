package lifecycle

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/config"
	"github.com/nightjar-edr/nightjar/pkg/diskuse"
	"github.com/nightjar-edr/nightjar/pkg/ops"
	"github.com/nightjar-edr/nightjar/pkg/tracing"
)

// Exit codes of every program.
const (
	ExitOK     = 0 // stopped on request
	ExitFailed = 1 // failed at work
	ExitUsage  = 2 // unusable flags or configuration
)

// StopTimeout is how long a program may take to stop cleanly.
const StopTimeout = 20 * time.Second

// Env is what a component is given from outside.
type Env struct {
	Bus *bus.Bus
	Log *slog.Logger
	// Metrics is the component's own registry.
	Metrics prometheus.Registerer
	// DataDir is the folder of the component's store.
	DataDir string
	// Sync makes the store wait for stable storage at every commit.
	Sync bool
	// Replicas is the number of copies of each stream and bucket.
	Replicas int
	// Room, if not nil, tells why nothing may be written to DataDir at the
	// moment. It is cheap and safe for concurrent use.
	Room func() error
}

// DefaultMinFree is how many bytes of the file system of a data folder stay
// free unless told otherwise.
const DefaultMinFree = 512 << 20

// Component is a service.
type Component interface {
	// Run works until ctx ends, then finishes the work in hand, closes what
	// the component opened, and returns nil. It is called once.
	Run(ctx context.Context) error
	// Ready returns nil when the component has caught up and can do its
	// work, otherwise the reason why not. It is cheap and may be called at
	// any time.
	Ready() error
}

// AddLogFlags adds --log-level and --log-format and returns a function that
// makes the logger once the flags are read.
func AddLogFlags(fs *flag.FlagSet) func(w *os.File) (*slog.Logger, error) {
	level := fs.String("log-level", "info", "debug, info, warn or error")
	format := fs.String("log-format", "", "text or json; unset: text on a terminal, else json")
	return func(w *os.File) (*slog.Logger, error) {
		var l slog.Level
		if err := l.UnmarshalText([]byte(*level)); err != nil {
			return nil, fmt.Errorf("log-level %q: want debug, info, warn or error", *level)
		}
		f := *format
		if f == "" {
			f = "json"
			if st, err := w.Stat(); err == nil && st.Mode()&os.ModeCharDevice != 0 {
				f = "text"
			}
		}
		switch f {
		case "text":
			return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: l})), nil
		case "json":
			return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: l})), nil
		}
		return nil, fmt.Errorf("log-format %q: want text or json", f)
	}
}

// Program describes the program of a single service.
type Program struct {
	// Name of the service and Intro, a sentence for --help.
	Name, Intro string
	// Flags adds the service's own flags and returns the function that makes
	// the component once they are read. An error that wraps ErrUsage ends
	// the program with ExitUsage. A flag that can be judged by itself is
	// given a config.Check, which speaks before NATS is connected to.
	Flags func(fs *flag.FlagSet) func(Env) (Component, error)
	// UserFlag is the flag that holds the name of the NATS user; empty where
	// that is the service's own name.
	UserFlag string
}

// maxReplicas is the number of copies that JetStream allows.
const maxReplicas = 5

// ErrUsage marks an error as one of flags or configuration.
var ErrUsage = errors.New("usage")

// Main runs a service as a program of its own and returns its exit code. With
// HealthCommand as the first argument it asks the running one how it is.
func (p Program) Main(args []string, stderr *os.File) int {
	fs := config.NewFlagSet(p.Name, p.Intro+"\n\n"+HealthHelp(p.Name), stderr)
	url := fs.String("nats-url", "nats://127.0.0.1:4222", "address of the NATS servers, comma-separated")
	nkey := fs.String("nats-nkey", "", "file with the NKey seed of this service")
	ca := fs.String("nats-ca", "", "PEM file with the certificate authority of the NATS servers")
	dir := fs.String("data-dir", "./data", "folder of this service's store")
	opsAddr := fs.String("ops-addr", ":8080", "address of /metrics, /healthz and /readyz")
	replicas := fs.Int("replicas", 1, "copies of each stream and bucket that this service owns")
	config.Check(fs, "replicas", func() error {
		if *replicas < 1 || *replicas > maxReplicas {
			return fmt.Errorf("want 1 to %d", maxReplicas)
		}
		return nil
	})
	config.Check(fs, "ops-addr", func() error { return config.CheckAddress(*opsAddr) })
	sync := config.Sync{Always: true}
	fs.Var(&sync, "sync", "always: every commit waits for stable storage; or an interval such as 10s")
	minFree := config.Bytes(DefaultMinFree)
	fs.Var(&minFree, "min-free", "bytes of the file system of data-dir that stay free, at most a fifth of it; nothing is written while fewer are")
	logger := AddLogFlags(fs)
	traces := tracing.AddFlags(fs)
	build := p.Flags(fs)
	health, args := IsHealth(args)
	fail := func(code int, err error) int {
		fmt.Fprintf(stderr, "%s: %v\n", p.Name, err)
		return code
	}
	if err := config.Parse(fs, args); errors.Is(err, config.ErrHelp) {
		return ExitOK
	} else if err != nil {
		return fail(ExitUsage, err)
	}
	if health {
		return Health(p.Name, *opsAddr, stderr)
	}
	log, err := logger(stderr)
	if err != nil {
		return fail(ExitUsage, err)
	}
	traces.Log = log
	exporter, err := tracing.Open(*traces)
	if err != nil {
		return fail(ExitUsage, err)
	}
	defer exporter.Close()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	guard := diskuse.NewGuard(filepath.Clean(*dir), 0, int64(minFree))
	if err := errors.Join(guard.Startable(), guard.Measure()); err != nil {
		return fail(ExitFailed, err)
	}
	go guard.Run(ctx, func(err error) { log.Warn("look at the room of the store", "error", err) })
	user := p.Name
	if p.UserFlag != "" {
		user = fs.Lookup(p.UserFlag).Value.String()
	}
	b, err := bus.Connect(bus.Options{Service: user, URL: *url, SeedFile: *nkey, CAFile: *ca, Trace: exporter.Tracer(p.Name), Log: log})
	if errors.Is(err, bus.ErrOptions) {
		return fail(ExitUsage, err)
	} else if err != nil {
		return fail(ExitFailed, err)
	}
	defer b.Close()
	o, err := ops.Listen(*opsAddr, log)
	if err != nil {
		return fail(ExitFailed, err)
	}
	defer o.Close()
	o.Registry("process").MustRegister(ops.SyncInterval(sync.Interval), bus.CertificateExpiry(b))
	c, err := build(Env{Bus: b, Log: log.With("service", p.Name), Metrics: o.Registry(p.Name), DataDir: filepath.Clean(*dir), Sync: sync.Always, Replicas: *replicas, Room: guard.Full})
	if err != nil {
		if errors.Is(err, ErrUsage) {
			return fail(ExitUsage, err)
		}
		return fail(ExitFailed, err)
	}
	o.Check(p.Name, c.Ready)
	o.Check("room", guard.Full)
	go o.Serve()
	log.Info("started", "service", p.Name)
	if err := RunAll(ctx, log, c); err != nil {
		return fail(ExitFailed, err)
	}
	log.Info("stopped", "service", p.Name)
	return ExitOK
}

// RunAll runs components side by side until ctx ends or one fails, then stops
// the others and waits for them, at most StopTimeout.
func RunAll(ctx context.Context, log *slog.Logger, components ...Component) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, len(components))
	for _, c := range components {
		go func() { done <- c.Run(ctx) }()
	}
	var failure error
	left := len(components)
	for left > 0 && ctx.Err() == nil {
		select {
		case err := <-done:
			left--
			if err != nil {
				failure = err
			}
			cancel()
		case <-ctx.Done():
		}
	}
	limit := time.NewTimer(StopTimeout)
	defer limit.Stop()
	for ; left > 0; left-- {
		select {
		case err := <-done:
			if err != nil && failure == nil {
				failure = err
			}
		case <-limit.C:
			return errors.Join(failure, fmt.Errorf("not stopped within %s", StopTimeout))
		}
	}
	if failure != nil {
		log.Error("stopped by a failure", "error", failure)
	}
	return failure
}

// Discard is a logger that writes nothing, for tests.
func Discard() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }
