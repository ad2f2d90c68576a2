package manager

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gofrs/flock"

	gateway "github.com/nightjar-edr/nightjar/services/api-gateway/service"
	dispatch "github.com/nightjar-edr/nightjar/services/command-dispatch/service"
	registry "github.com/nightjar-edr/nightjar/services/endpoint-registry/service"
	ingest "github.com/nightjar-edr/nightjar/services/log-ingest/service"
	scorer "github.com/nightjar-edr/nightjar/services/report-scorer/service"
	ruleengine "github.com/nightjar-edr/nightjar/services/rule-engine/service"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/certs"
	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/diskuse"
	"github.com/nightjar-edr/nightjar/pkg/failpoint"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/ops"
	"github.com/nightjar-edr/nightjar/pkg/tracing"
	"github.com/nightjar-edr/nightjar/services/standalone/internal/natsd"
	"github.com/nightjar-edr/nightjar/services/standalone/internal/whids"
)

// Manager is Nightjar in one process.
type Manager struct {
	cfg      Config
	whids    whids.Config
	lock     *flock.Flock
	nats     *natsd.Server
	buses    []*bus.Bus
	guard    *diskuse.Guard
	ops      *ops.Server
	traces   *tracing.Exporter
	gateway  *gateway.Service
	services []lifecycle.Component
	cert     *certs.Served
}

// New prepares a manager: it takes the data folder, starts NATS and opens all
// stores and listeners. Run must be called afterwards. An error that wraps
// lifecycle.ErrUsage is one of configuration.
func New(cfg Config) (_ *Manager, err error) {
	m := &Manager{cfg: cfg}
	if m.cfg.Notice == nil {
		m.cfg.Notice = func(string) {}
	}
	siems, err := access.ParseSIEMs(cfg.SIEMs)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", lifecycle.ErrUsage, err)
	}
	if err := m.readWHIDS(); err != nil {
		return nil, err
	}
	if err := cfg.checkAddresses(); err != nil {
		return nil, fmt.Errorf("%w: %w", lifecycle.ErrUsage, err)
	}
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	if cfg.Traces != nil {
		cfg.Traces.Log = cfg.Log
		if m.traces, err = tracing.Open(*cfg.Traces); err != nil {
			return nil, fmt.Errorf("%w: %w", lifecycle.ErrUsage, err)
		}
	}
	if err := m.takeFolder(); err != nil {
		return nil, err
	}
	if m.cert, err = certs.Load(cfg.TLS, filepath.Join(cfg.DataDir, "tls"), cfg.hosts()); err != nil {
		return nil, fmt.Errorf("%w: %w", lifecycle.ErrUsage, err)
	}
	m.guard = diskuse.NewGuard(cfg.DataDir, int64(cfg.MaxStore), int64(cfg.MinFree))
	if err := m.guard.Startable(); err != nil {
		return nil, err
	}
	if err := m.guard.Measure(); err != nil {
		return nil, err
	}
	if m.ops, err = ops.Listen(cfg.OpsAddr, cfg.Log); err != nil {
		return nil, err
	}
	m.ops.Check("room", m.guard.Full)
	m.register()
	if err := m.startNATS(siems); err != nil {
		return nil, err
	}
	failpoint.Hit(failpoint.StartAfterNATS)
	if err := m.build(siems); err != nil {
		return nil, err
	}
	return m, nil
}

// takeFolder makes the data folder and locks it.
func (m *Manager) takeFolder() error {
	dir := m.cfg.DataDir
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("data-dir %s: %w", dir, err)
	}
	m.lock = flock.New(filepath.Join(dir, lockName))
	locked, err := m.lock.TryLock()
	if err != nil {
		return fmt.Errorf("data-dir %s is not writable: %w", dir, err)
	}
	if !locked {
		return fmt.Errorf("data-dir %s is in use by another process", dir)
	}
	return checkRestored(dir)
}

func (m *Manager) startNATS(siems []string) error {
	cfg := natsd.Config{Dir: filepath.Join(m.cfg.DataDir, natsDir), Sync: m.cfg.Sync, SIEMs: map[string]string{}, Log: m.cfg.Log}
	if m.cfg.NATSAddr != "off" {
		cfg.Addr = m.cfg.NATSAddr
	}
	if m.cert != nil {
		cfg.TLS = m.cert.Config
	}
	for _, name := range siems {
		public, _, err := natsd.UserKey(m.cfg.DataDir, name)
		if err != nil {
			return err
		}
		cfg.SIEMs[name] = public
	}
	var err error
	if cfg.Backup, _, err = natsd.UserKey(m.cfg.DataDir, access.Backup); err != nil {
		return err
	}
	if m.nats, err = natsd.Start(cfg); err != nil {
		return err
	}
	m.nats.RegisterMetrics(m.ops.Registry("nats"))
	return m.nats.ListenLocal(m.cfg.DataDir)
}

// env returns what a service is given, with a connection of its own.
func (m *Manager) env(name string) (lifecycle.Env, error) {
	log := m.cfg.Log.With("service", name)
	b, err := bus.Connect(bus.Options{Service: name, Seed: m.nats.Seeds[name], InProcess: m.nats, Trace: m.traces.Tracer(name), Log: log})
	if err != nil {
		return lifecycle.Env{}, fmt.Errorf("%s: %w", name, err)
	}
	m.buses = append(m.buses, b)
	return lifecycle.Env{Bus: b, Log: log, Metrics: m.ops.Registry(name), DataDir: filepath.Join(m.cfg.DataDir, name), Sync: m.cfg.Sync.Always, Replicas: 1}, nil
}

func (m *Manager) build(siems []string) error {
	events, alerts := time.Duration(m.cfg.RetentionEvents), time.Duration(m.cfg.RetentionAlerts)
	add := func(name string, build func(lifecycle.Env) (lifecycle.Component, error)) error {
		env, err := m.env(name)
		if err != nil {
			return err
		}
		c, err := build(env)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		m.ops.Check(name, c.Ready)
		if g, ok := c.(*gateway.Service); ok {
			m.gateway = g
		} else {
			m.services = append(m.services, c)
		}
		return nil
	}
	for _, s := range []struct {
		name  string
		build func(lifecycle.Env) (lifecycle.Component, error)
	}{
		{access.Registry, func(e lifecycle.Env) (lifecycle.Component, error) {
			return registry.New(registry.Config{Env: e, Import: m.importedEndpoints()})
		}},
		{access.Rules, func(e lifecycle.Env) (lifecycle.Component, error) {
			return ruleengine.New(ruleengine.Config{Env: e, RulesDir: m.cfg.RulesDir, ContainersDir: m.cfg.ContainersDir,
				OtherRulesDir: m.whids.RulesDir, OtherContainersDir: m.whids.ContainersDir, SIEMs: siems,
				RetentionAlerts: alerts, RetentionAlertBytes: int64(m.cfg.RetentionAlertsSize)})
		}},
		{access.Ingest, func(e lifecycle.Env) (lifecycle.Component, error) {
			return ingest.New(ingest.Config{Env: e, Alone: true, RetentionAlerts: alerts, MergeAfter: time.Duration(m.cfg.MergeAfter)})
		}},
		{access.Scorer, func(e lifecycle.Env) (lifecycle.Component, error) {
			return scorer.New(scorer.Config{Env: e})
		}},
		{access.Commands, func(e lifecycle.Env) (lifecycle.Component, error) {
			return dispatch.New(dispatch.Config{Env: e, MaxQueued: m.cfg.MaxQueued, History: m.cfg.CommandHistory})
		}},
		{access.Gateway, func(e lifecycle.Env) (lifecycle.Component, error) {
			cfg := gateway.Config{Env: e, Alone: true, AdminAddr: m.cfg.AdminAddr, AgentAddr: m.cfg.AgentAddr,
				AdminKey: m.cfg.AdminKey, ServerKey: cmp.Or(m.cfg.ServerKey, m.whids.ServerKey), Operators: m.importedOperators(),
				Events: stream.Limits{MaxAge: events, KeepBytes: int64(m.cfg.RetentionEventsSize)}, DeadLetters: stream.Limits{MaxAge: events}, Audit: stream.Limits{MaxAge: alerts},
				Full: m.guard.Full, OnAdminKey: m.announceKey, DropDir: m.dropDir(), MaxCommandFiles: int64(m.cfg.MaxCommandFiles)}
			if m.cert != nil {
				cfg.TLS = m.cert.Config
			}
			return gateway.New(cfg)
		}},
	} {
		if err := add(s.name, s.build); err != nil {
			return err
		}
	}
	return nil
}

func (m *Manager) dropDir() string {
	if m.cfg.DropDir != "" {
		return m.cfg.DropDir
	}
	return filepath.Join(m.cfg.DataDir, "drop")
}

func (m *Manager) announceKey(key string) {
	m.cfg.Notice("The key of operator admin, shown only now: " + key)
}

// Run works until ctx ends, then stops cleanly.
func (m *Manager) Run(ctx context.Context) error {
	defer m.close()
	failpoint.Hit(failpoint.StartBeforeServices)
	go m.ops.Serve()
	m.cfg.Notice(m.banner())
	watch, endWatch := context.WithCancel(context.WithoutCancel(ctx))
	defer endWatch()
	go m.guard.Run(watch, func(err error) { m.cfg.Log.Warn("look at the room of the stores", "error", err) })

	// The services outlive the gateway, whose last requests they answer.
	inner, stopInner := context.WithCancel(context.WithoutCancel(ctx))
	defer stopInner()
	door, closeDoor := context.WithCancel(ctx)
	defer closeDoor()
	services := make(chan error, 1)
	go func() {
		err := lifecycle.RunAll(inner, m.cfg.Log, m.services...)
		closeDoor() // a service that failed takes the whole manager down
		services <- err
	}()
	go func() {
		select {
		case <-m.nats.Failed():
			closeDoor() // only a new start makes the stream accept messages again
		case <-door.Done():
		}
	}()
	err := m.gateway.Run(door)
	failpoint.Hit(failpoint.StopAfterGateway)
	stopInner()
	err = errors.Join(err, <-services)
	err = errors.Join(err, m.nats.Err())
	failpoint.Hit(failpoint.StopBeforeNATS)
	m.cfg.Log.Info("stopped")
	return err
}

func (m *Manager) banner() string {
	scheme := "http"
	var b strings.Builder
	if m.cert != nil {
		scheme = "https"
		fmt.Fprintf(&b, "certificate  SHA-256 %s (until %s)\n", m.cert.Fingerprint, m.cert.NotAfter.Format(time.DateOnly))
		fmt.Fprintf(&b, "public key   SHA-256 %s\n", m.cert.PublicKey)
		if m.cert.CAFile != "" {
			fmt.Fprintf(&b, "trust        %s\n", m.cert.CAFile)
		}
	}
	fmt.Fprintf(&b, "admin API    %s://%s\nagent API    %s://%s\n", scheme, m.gateway.AdminAddr(), scheme, m.gateway.AgentAddr())
	if a := m.nats.Addr(); a != nil {
		fmt.Fprintf(&b, "NATS         %s\n", a)
	}
	fmt.Fprintf(&b, "ops          http://%s/readyz", m.ops.Addr())
	return b.String()
}

// Ready returns nil when all services are ready.
func (m *Manager) Ready() error {
	for _, c := range append([]lifecycle.Component{m.gateway}, m.services...) {
		if err := c.Ready(); err != nil {
			return err
		}
	}
	return nil
}

// Addresses returns the addresses that are really listened on. NATS is empty
// when it is off.
func (m *Manager) Addresses() (admin, agent, nats, ops string) {
	if a := m.nats.Addr(); a != nil {
		nats = a.String()
	}
	return m.gateway.AdminAddr(), m.gateway.AgentAddr(), nats, m.ops.Addr()
}

func (m *Manager) close() {
	for _, b := range m.buses {
		b.Close()
	}
	if m.nats != nil {
		m.nats.Stop()
	}
	if m.ops != nil {
		m.ops.Close()
	}
	m.traces.Close()
	if m.lock != nil {
		if err := m.lock.Unlock(); err != nil {
			m.cfg.Log.Warn("data-dir", "error", err)
		}
	}
}
