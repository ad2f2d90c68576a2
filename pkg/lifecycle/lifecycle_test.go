package lifecycle_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/nightjar-edr/nightjar/pkg/config"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

// component runs what it is given.
type component struct {
	run func(ctx context.Context) error
}

func (c component) Run(ctx context.Context) error { return c.run(ctx) }
func (component) Ready() error                    { return nil }

// untilStopped waits for the end of ctx and says with what that ended.
func untilStopped(stopped *bool, err error) component {
	return component{func(ctx context.Context) error {
		<-ctx.Done()
		*stopped = true
		return err
	}}
}

func TestRunAll(t *testing.T) {
	var (
		broken  = errors.New("store is broken")
		unclean = errors.New("close failed")
	)
	fails := component{func(context.Context) error { return broken }}
	ends := component{func(context.Context) error { return nil }}
	for _, tc := range []struct {
		name        string
		first       component
		atStop      error
		cancelled   bool
		want        error
		wantNothing bool
	}{
		{name: "one fails", first: fails, want: broken},
		{name: "the first failure counts", first: fails, atStop: unclean, want: broken},
		{name: "one ends by itself", first: ends, wantNothing: true},
		{name: "failure while stopping", first: ends, atStop: unclean, want: unclean},
		{name: "context at its end", first: ends, cancelled: true, wantNothing: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if tc.cancelled {
				cancel()
			}
			var a, b bool
			err := lifecycle.RunAll(ctx, lifecycle.Discard(), untilStopped(&a, tc.atStop), tc.first, untilStopped(&b, nil))
			if tc.wantNothing && err != nil || !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			if !a || !b {
				t.Error("returned before all had stopped")
			}
		})
	}
	t.Run("stops with its context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var stopped bool
		cancels := component{func(ctx context.Context) error { cancel(); <-ctx.Done(); return nil }}
		if err := lifecycle.RunAll(ctx, lifecycle.Discard(), untilStopped(&stopped, nil), cancels); err != nil || !stopped {
			t.Errorf("stopped %v, %v", stopped, err)
		}
	})
	t.Run("nothing to run", func(t *testing.T) {
		if err := lifecycle.RunAll(t.Context(), lifecycle.Discard()); err != nil {
			t.Error(err)
		}
	})
}

// program runs a small program and returns its exit code and what it wrote.
func program(t *testing.T, build func(lifecycle.Env) (lifecycle.Component, error), args ...string) (int, string) {
	t.Helper()
	stderr, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	code := lifecycle.Program{
		Name: "tiny", Intro: "tiny does next to nothing.",
		Flags: func(fs *flag.FlagSet) func(lifecycle.Env) (lifecycle.Component, error) {
			size := fs.Int("size", 1, "size of it")
			config.Check(fs, "size", func() error {
				if *size < 1 {
					return errors.New("want at least 1")
				}
				return nil
			})
			var keep config.Duration
			fs.Var(&keep, "keep", "how long it is kept")
			return build
		},
	}.Main(args, stderr)
	out, err := os.ReadFile(stderr.Name())
	if err != nil {
		t.Fatal(err)
	}
	return code, string(out)
}

func mustNotBuild(t *testing.T) func(lifecycle.Env) (lifecycle.Component, error) {
	return func(lifecycle.Env) (lifecycle.Component, error) {
		t.Error("the component was made")
		return nil, errors.New("unexpected")
	}
}

// nowhere is an address of NATS at which nobody answers.
const nowhere = "nats://127.0.0.1:1"

// Unusable flags are told before NATS is connected to, which may be away.
func TestExitWithoutNATS(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("colour: blue\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"help", []string{"--help"}, lifecycle.ExitOK, "  --size\n"},
		{"NATS is away", nil, lifecycle.ExitFailed, nowhere},
		{"unknown flag", []string{"--colour", "blue"}, lifecycle.ExitUsage, "colour"},
		{"argument", []string{"start"}, lifecycle.ExitUsage, `"start"`},
		{"unknown key", []string{"--config", bad}, lifecycle.ExitUsage, `"colour"`},
		{"no such file", []string{"--config", bad + "x"}, lifecycle.ExitUsage, "bad.yamlx"},
		{"log level", []string{"--log-level", "loud"}, lifecycle.ExitUsage, `log-level "loud"`},
		{"log format", []string{"--log-format", "xml"}, lifecycle.ExitUsage, `log-format "xml"`},
		{"sync", []string{"--sync", "never"}, lifecycle.ExitUsage, "want always"},
		{"no replica", []string{"--replicas", "0"}, lifecycle.ExitUsage, "want 1 to 5"},
		{"ops address", []string{"--ops-addr", "127.0.0.1:99999"}, lifecycle.ExitUsage, "want HOST:PORT"},
		{"too many replicas", []string{"--replicas", "6"}, lifecycle.ExitUsage, "want 1 to 5"},
		{"the service's own flag", []string{"--keep", "soon"}, lifecycle.ExitUsage, "want a duration"},
		{"the service's own check", []string{"--size", "0"}, lifecycle.ExitUsage, "want at least 1"},
		{"seed file", []string{"--nats-nkey", bad}, lifecycle.ExitUsage, bad},
		{"CA file", []string{"--nats-ca", bad}, lifecycle.ExitUsage, bad},
	} {
		t.Run(tc.name, func(t *testing.T) {
			code, out := program(t, mustNotBuild(t), append([]string{"--nats-url", nowhere, "--ops-addr", "127.0.0.1:0"}, tc.args...)...)
			if code != tc.code || !strings.Contains(out, tc.want) {
				t.Errorf("exit code %d, want %d and %s in\n%s", code, tc.code, tc.want, out)
			}
		})
	}
}

// listening starts a NATS server on a port and returns its address.
func listening(t *testing.T) string {
	t.Helper()
	srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(10 * time.Second) {
		t.Fatal("nats server is not ready")
	}
	return srv.ClientURL()
}

func TestExitWithNATS(t *testing.T) {
	url := listening(t)
	for _, tc := range []struct {
		name  string
		build func(lifecycle.Env) (lifecycle.Component, error)
		code  int
		want  string
	}{
		{"unusable configuration", func(lifecycle.Env) (lifecycle.Component, error) {
			return nil, fmt.Errorf("%w: shards 99", lifecycle.ErrUsage)
		}, lifecycle.ExitUsage, "shards 99"},
		{"no store", func(lifecycle.Env) (lifecycle.Component, error) { return nil, errors.New("store in use") }, lifecycle.ExitFailed, "store in use"},
		{"failure at work", func(lifecycle.Env) (lifecycle.Component, error) {
			return component{func(context.Context) error { return errors.New("disk is gone") }}, nil
		}, lifecycle.ExitFailed, "disk is gone"},
		{"stopped by a signal", func(lifecycle.Env) (lifecycle.Component, error) {
			return component{func(ctx context.Context) error {
				if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
					return err
				}
				<-ctx.Done()
				return nil
			}}, nil
		}, lifecycle.ExitOK, `"msg":"stopped"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			code, out := program(t, tc.build, "--nats-url", url, "--ops-addr", "127.0.0.1:0")
			if code != tc.code || !strings.Contains(out, tc.want) {
				t.Errorf("exit code %d, want %d and %s in\n%s", code, tc.code, tc.want, out)
			}
		})
	}
	t.Run("ops address", func(t *testing.T) {
		taken, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = taken.Close() }()
		addr := taken.Addr().String()
		code, out := program(t, mustNotBuild(t), "--nats-url", url, "--ops-addr", addr)
		if code != lifecycle.ExitFailed || !strings.Contains(out, "ops-addr "+addr) {
			t.Errorf("exit code %d and\n%s", code, out)
		}
	})
}

// A component gets what the flags say.
func TestEnv(t *testing.T) {
	url := listening(t)
	var got lifecycle.Env
	build := func(e lifecycle.Env) (lifecycle.Component, error) {
		got = e
		if err := e.Bus.Ready(); err != nil {
			t.Error(err)
		}
		return component{func(context.Context) error { return nil }}, nil
	}
	for _, tc := range []struct {
		sync string
		want bool
	}{{"always", true}, {"10s", false}} {
		code, out := program(t, build, "--nats-url", url, "--ops-addr", "127.0.0.1:0", "--data-dir", "/var/lib/tiny/", "--replicas", "3", "--sync", tc.sync)
		if code != lifecycle.ExitOK {
			t.Fatalf("exit code %d and\n%s", code, out)
		}
		if got.DataDir != "/var/lib/tiny" || got.Replicas != 3 || got.Sync != tc.want || got.Metrics == nil || got.Log == nil {
			t.Errorf("env %+v", got)
		}
	}
}

func TestLogFlags(t *testing.T) {
	for _, tc := range []struct {
		name   string
		args   []string
		want   string
		hidden bool // whether a line of level info is
	}{
		{"json to a file", nil, `"msg":"hello"`, false},
		{"text", []string{"--log-format", "text"}, "msg=hello", false},
		{"level", []string{"--log-level", "warn"}, "", true},
		{"level in capitals", []string{"--log-level", "INFO"}, `"level":"INFO"`, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w, err := os.Create(filepath.Join(t.TempDir(), "log"))
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			fs := config.NewFlagSet("prog", "", w)
			logger := lifecycle.AddLogFlags(fs)
			if err := config.Parse(fs, tc.args); err != nil {
				t.Fatal(err)
			}
			log, err := logger(w)
			if err != nil {
				t.Fatal(err)
			}
			log.Log(t.Context(), slog.LevelInfo, "hello")
			out, err := os.ReadFile(w.Name())
			if err != nil {
				t.Fatal(err)
			}
			if (len(out) == 0) != tc.hidden || !strings.Contains(string(out), tc.want) {
				t.Errorf("wrote %q", out)
			}
		})
	}
}
