package natsd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/config"
	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
)

// Config describes the server.
type Config struct {
	// Dir is where JetStream keeps its streams.
	Dir string
	// Addr is the address for SIEMs; empty for none.
	Addr string
	// TLS is required of connections to Addr when not nil.
	TLS *tls.Config
	// Sync decides when an acknowledged message is on stable storage.
	Sync config.Sync
	// SIEMs are the public NKeys of the SIEMs, by name.
	SIEMs map[string]string
	// Backup is the public NKey of the user who may read every stream for a
	// backup; empty for none.
	Backup string
	// Restoring gives a key to the user access.Restore.
	Restoring bool
	Log       *slog.Logger
}

// Server is a running NATS server.
type Server struct {
	// Server accepts in-process connections.
	*server.Server
	// Seeds are the NKey seeds of the services, made for this run alone.
	Seeds map[string][]byte

	local   localDoor
	failure failure
}

// ErrBroken means that a stream could not be written, for instance because
// the disk is full. The server accepts nothing more for it until it is started
// anew.
var ErrBroken = errors.New("a stream could not be written and takes nothing until a new start")

// Failed is closed when a stream has become unusable.
func (s *Server) Failed() <-chan struct{} { return s.failure.failed }

// Err returns an error that wraps ErrBroken once a stream has become unusable.
func (s *Server) Err() error {
	select {
	case <-s.failure.failed:
		return fmt.Errorf("%w: %s", ErrBroken, s.failure.text)
	default:
		return nil
	}
}

// Start starts the server and waits until it accepts connections.
func Start(cfg Config) (*Server, error) {
	slowClock()
	s := &Server{Seeds: map[string][]byte{}, failure: failure{failed: make(chan struct{})}}
	opts := &server.Options{
		ServerName:         "nightjar",
		JetStream:          true,
		StoreDir:           cfg.Dir,
		JetStreamMaxMemory: 64 << 20,
		JetStreamMaxStore:  1 << 62, // --max-store bounds all stores together
		SyncAlways:         cfg.Sync.Always,
		SyncInterval:       cfg.Sync.Interval,
		MaxPayload:         stream.MaxMessage,
		MaxPending:         128 << 20,
		WriteDeadline:      30 * time.Second,
		NoSigs:             true,
		DontListen:         cfg.Addr == "",
		TLSConfig:          cfg.TLS,
		TLS:                cfg.TLS != nil,
		TLSTimeout:         5,
	}
	if cfg.Addr != "" {
		host, port, err := net.SplitHostPort(cfg.Addr)
		if err != nil {
			return nil, fmt.Errorf("nats-addr %s: %w", cfg.Addr, err)
		}
		if opts.Port, err = strconv.Atoi(port); err != nil {
			return nil, fmt.Errorf("nats-addr %s: %w", cfg.Addr, err)
		}
		if opts.Port == 0 {
			opts.Port = server.RANDOM_PORT
		}
		opts.Host = host
		// The server only logs that its port is taken; this says it.
		probe, err := net.Listen("tcp", cfg.Addr)
		if err != nil {
			return nil, fmt.Errorf("nats-addr %s: %w", cfg.Addr, err)
		}
		if err := probe.Close(); err != nil {
			return nil, fmt.Errorf("nats-addr %s: %w", cfg.Addr, err)
		}
	}
	for _, name := range access.Services {
		p, err := access.ForService(name)
		if err != nil {
			return nil, err
		}
		if err := s.addUser(opts, name, p); err != nil {
			return nil, err
		}
	}
	for name, public := range cfg.SIEMs {
		opts.Nkeys = append(opts.Nkeys, user(public, access.ForSIEM(name)))
	}
	if cfg.Backup != "" {
		opts.Nkeys = append(opts.Nkeys, user(cfg.Backup, access.ForBackup()))
	}
	if cfg.Restoring {
		if err := s.addUser(opts, access.Restore, access.ForRestore()); err != nil {
			return nil, err
		}
	}
	var err error
	if s.Server, err = server.NewServer(opts); err != nil {
		return nil, fmt.Errorf("embedded nats: %w", err)
	}
	s.SetLoggerV2(logger{cfg.Log, &s.failure}, false, false, false)
	s.Server.Start()
	if !s.ReadyForConnections(30 * time.Second) {
		s.Server.Shutdown()
		return nil, fmt.Errorf("embedded nats: not ready within 30s")
	}
	return s, nil
}

// Stop shuts the server down and waits until its files are closed.
func (s *Server) Stop() {
	s.local.close()
	s.Server.Shutdown()
	s.WaitForShutdown()
}

// RegisterMetrics registers what the running server says of when it syncs.
func (s *Server) RegisterMetrics(reg prometheus.Registerer) {
	gauge := func(name, help string, value func(c *server.JetStreamConfig) float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "nightjar", Subsystem: "standalone", Name: name, Help: help}, func() float64 {
			c := s.JetStreamConfig()
			if c == nil {
				return math.NaN()
			}
			return value(c)
		}))
	}
	gauge("jetstream_sync_always", "1 when JetStream acknowledges what is on stable storage alone.", func(c *server.JetStreamConfig) float64 {
		if c.SyncAlways {
			return 1
		}
		return 0
	})
	gauge("jetstream_sync_interval_seconds", "How often JetStream syncs where it does not at each acknowledgement.", func(c *server.JetStreamConfig) float64 {
		return c.SyncInterval.Seconds()
	})
}

// addUser makes a key for a user of this run.
func (s *Server) addUser(opts *server.Options, name string, p access.Permissions) error {
	kp, err := nkeys.CreateUser()
	if err != nil {
		return fmt.Errorf("nkey of %s: %w", name, err)
	}
	public, err := kp.PublicKey()
	if err != nil {
		return fmt.Errorf("nkey of %s: %w", name, err)
	}
	if s.Seeds[name], err = kp.Seed(); err != nil {
		return fmt.Errorf("nkey of %s: %w", name, err)
	}
	opts.Nkeys = append(opts.Nkeys, user(public, p))
	return nil
}

func user(public string, p access.Permissions) *server.NkeyUser {
	u := &server.NkeyUser{Nkey: public, Permissions: &server.Permissions{
		Publish:   &server.SubjectPermission{Allow: p.Publish},
		Subscribe: &server.SubjectPermission{Allow: p.Subscribe},
	}}
	if p.Respond {
		u.Permissions.Response = &server.ResponsePermission{MaxMsgs: 1, Expires: access.RespondWithin}
	}
	return u
}

// UserKey returns the public NKey of a user, such as a SIEM, whose seed is in
// <dir>/<name>.nk and is made, readable by the owner alone, when it is missing.
func UserKey(dir, name string) (public, file string, err error) {
	if err := access.MakeSeed(dir, name); err != nil {
		return "", "", err
	}
	public, err = access.PublicKey(dir, name)
	return public, access.SeedFile(dir, name), err
}

// failure is the first write error of a stream.
type failure struct {
	once   sync.Once
	failed chan struct{}
	text   string // set before failed is closed
}

// critical is how the server's log tells that a stream could not be
// written; nothing else tells it. Such a stream refuses everything from then
// on, while the server calls itself healthy.
const critical = "critical write error"

func (f *failure) look(text string) {
	if strings.Contains(strings.ToLower(text), critical) {
		f.once.Do(func() {
			f.text = text
			close(f.failed)
		})
	}
}

type logger struct {
	log     *slog.Logger
	failure *failure
}

func (l logger) write(level slog.Level, f string, a ...any) {
	l.log.Log(context.Background(), level, strings.TrimSpace(fmt.Sprintf(f, a...)), "component", "nats")
}
func (l logger) Noticef(f string, a ...any) { l.write(slog.LevelDebug, f, a...) }
func (l logger) Warnf(f string, a ...any)   { l.write(slog.LevelWarn, f, a...) }
func (l logger) Fatalf(f string, a ...any)  { l.write(slog.LevelError, f, a...) }
func (l logger) Errorf(f string, a ...any) {
	l.write(slog.LevelError, f, a...)
	l.failure.look(fmt.Sprintf(f, a...))
}
func (l logger) Debugf(f string, a ...any) { l.write(slog.LevelDebug, f, a...) }
func (l logger) Tracef(f string, a ...any) { l.write(slog.LevelDebug, f, a...) }
