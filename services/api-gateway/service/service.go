package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"

	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/removal"
	"github.com/nightjar-edr/nightjar/pkg/retention"
	"github.com/nightjar-edr/nightjar/pkg/store"
	"github.com/nightjar-edr/nightjar/pkg/streamwatch"
	"github.com/nightjar-edr/nightjar/pkg/view"
)

// garbageInterval is how often the store gives space back.
const garbageInterval = 10 * time.Minute

// bootTimeout bounds the writing of the first operator and the server key.
const bootTimeout = 30 * time.Second

// lastTimeout bounds what is still done when the last request has ended.
const lastTimeout = 3 * time.Second

// Service is the gateway. Make it with New and run it with Run.
type Service struct {
	cfg         Config
	db          *store.DB
	metrics     *metrics
	credentials *credentials
	operators   *operators
	removals    *removal.Removals
	peers       *peers
	seen        *lastSeen
	rules       *agentRules
	containers  *agentContainers
	commands    *commandDesk
	binds       singleflight.Group
	binding     *semaphore.Weighted
	watch       *streamwatch.Watch
	keepers     []*retention.Keeper
	pub         *publisher
	ingest      *ingester
	adminHTTP   *httpServer
	agentHTTP   *httpServer
	serving     atomic.Bool
}

// New opens the gateway's store and its listeners. It answers nothing before
// Run, which also closes both; a gateway that is never run leaves them open.
func New(cfg Config) (*Service, error) {
	cfg.setDefaults()
	if err := checkOperators(cfg.Operators); err != nil {
		return nil, fmt.Errorf("%w: import: %w", lifecycle.ErrUsage, err)
	}
	s := &Service{cfg: cfg, binding: semaphore.NewWeighted(maxBinding)}
	var undo []func() error
	fail := func(err error) (*Service, error) {
		for _, f := range undo {
			err = errors.Join(err, f())
		}
		return nil, err
	}
	var err error
	if s.db, err = store.Open(store.Options{Dir: cfg.DataDir, Sync: cfg.Sync, Log: cfg.Log}); err != nil {
		return nil, err
	}
	undo = append(undo, s.db.Close)
	s.seen = newLastSeen(cfg.Bus, cfg.Log, cfg.seenAgain)
	views := view.Config{JS: cfg.Bus.JS, Room: cfg.Room, Log: cfg.Log, Metrics: view.NewMetrics(cfg.Metrics, subsystem)}
	if s.credentials, err = newCredentials(s.db, views, s.seen.forget); err != nil {
		return fail(err)
	}
	if s.operators, err = newOperators(s.db, views); err != nil {
		return fail(err)
	}
	if s.removals, err = newRemovals(s.db, views, func(ctx context.Context, _ removal.Removal) error { return s.pub.intake.Clear(ctx) }); err != nil {
		return fail(err)
	}
	s.peers = newPeers(cfg.Bus, cfg.Log, cfg.Alone, s.credentials.view, s.removals.View())
	s.metrics = newMetrics(cfg.Metrics, s.db, s.credentials.count)
	showExpiry(cfg.Metrics, cfg.TLS)
	kv, _ := stream.KVStream(stream.Access)
	s.watch = streamwatch.New(cfg.Metrics, subsystem, cfg.Bus.JS, cfg.Log, stream.Intake, stream.Events, stream.DeadLetters, stream.Audit, kv)
	if err := s.newKeepers(); err != nil {
		return fail(err)
	}
	s.rules = newAgentRules(s)
	s.containers = newAgentContainers(s)
	s.commands = newCommandDesk(s)
	if s.pub, err = newPublisher(&s.cfg, s.removals.Generation); err != nil {
		return fail(err)
	}
	s.ingest = newIngester(s.pub, &s.cfg, s.removals.Generation, s.metrics)
	admin, err := listen(cfg.AdminListener, "admin-addr", cfg.AdminAddr)
	if err != nil {
		return fail(err)
	}
	undo = append(undo, admin.Close)
	agents, err := listen(cfg.AgentListener, "agent-addr", cfg.AgentAddr)
	if err != nil {
		return fail(err)
	}
	s.adminHTTP = newServer(admin, newRouter(s, "admin", s.adminRoutes(), cfg.AdminRequests), &s.cfg)
	s.agentHTTP = newServer(agents, newRouter(s, "agent", s.agentRoutes(), cfg.AgentRequests), &s.cfg)
	return s, nil
}

func listen(ln net.Listener, name, addr string) (net.Listener, error) {
	if ln != nil {
		return ln, nil
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", name, addr, err)
	}
	return ln, nil
}

// AdminAddr returns the address of the admin API.
func (s *Service) AdminAddr() string { return s.adminHTTP.ln.Addr().String() }

// AgentAddr returns the address of the agent API.
func (s *Service) AgentAddr() string { return s.agentHTTP.ln.Addr().String() }

// Ready returns nil when the gateway answers requests, has caught up with who
// may send them, and is connected.
func (s *Service) Ready() error {
	for _, v := range []*view.View{s.operators.view, s.credentials.view, s.removals.View()} {
		if err := v.Err(); err != nil {
			return err
		}
	}
	switch {
	case !s.serving.Load():
		return errors.New("starting")
	case !s.operators.view.Ready():
		return errors.New("view of operators is catching up")
	case !s.credentials.view.Ready():
		return errors.New("view of endpoints is catching up")
	case !s.removals.View().Ready():
		return errors.New("view of removals is catching up")
	}
	if err := s.cfg.Bus.Ready(); err != nil {
		return err
	}
	if err := s.pub.intake.Ready(); err != nil {
		return err
	}
	return s.peers.current()
}

// Run works until ctx ends: it makes the streams it owns, waits until its
// views have caught up, and answers requests. Then it lets requests in hand
// finish, tells the registry who was last seen, and closes the store. It is
// called once.
func (s *Service) Run(ctx context.Context) (err error) {
	inner, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	var work sync.WaitGroup
	leave := func() {}
	failed := func(what string, err error) {
		if err != nil {
			cancel(fmt.Errorf("%s: %w", what, err))
		}
	}
	defer func() {
		s.serving.Store(false)
		var down sync.WaitGroup
		for _, srv := range []*httpServer{s.adminHTTP, s.agentHTTP} {
			down.Go(func() { srv.shutdown(s.cfg.Log) })
		}
		down.Wait()
		last, stop := context.WithTimeout(context.WithoutCancel(ctx), lastTimeout)
		s.pub.wait(last)
		stop()
		cancel(nil)
		work.Wait()
		leave()
		err = errors.Join(err, s.db.Close())
	}()
	// Until requests are answered nothing needs to be finished, so everything
	// ends with ctx.
	starting, ready := context.WithCancel(inner)
	defer context.AfterFunc(ctx, ready)()
	defer ready()
	kv, err := s.ensure(starting)
	if err != nil {
		return orStopped(ctx, err)
	}
	work.Go(func() { failed("view of operators", s.operators.view.Run(inner)) })
	work.Go(func() { failed("view of endpoints", s.credentials.view.Run(inner)) })
	work.Go(func() { s.watch.Run(inner) })
	work.Go(func() { failed("view of removals", s.removals.Run(inner)) })
	work.Go(func() { s.rules.run(inner) })
	work.Go(func() { s.containers.run(inner) })
	work.Go(func() { s.commands.pending.run(inner) })
	work.Go(func() { s.seen.run(inner) })
	work.Go(func() { store.CollectGarbage(inner, s.db, garbageInterval) })
	for _, k := range s.keepers {
		work.Go(func() { k.Run(inner) })
	}
	if err := s.boot(starting, kv); errors.Is(err, view.ErrGap) {
		<-ctx.Done() // stays up to say why it is not ready
		return nil
	} else if err != nil {
		return orStopped(ctx, err)
	}
	if leave, err = s.peers.join(starting); err != nil {
		leave = func() {}
		return orStopped(ctx, err)
	}
	work.Go(func() { s.peers.run(inner) })
	work.Go(func() { s.pub.intake.Run(inner) })
	for _, srv := range []*httpServer{s.adminHTTP, s.agentHTTP} {
		work.Go(func() { failed("http", srv.serve()) })
	}
	s.serving.Store(true)
	s.cfg.Log.Info("answering", "admin", s.AdminAddr(), "agents", s.AgentAddr(), "tls", s.cfg.TLS != nil)
	select {
	case <-ctx.Done():
		return nil
	case <-inner.Done():
		return context.Cause(inner)
	}
}

// orStopped returns err, or nil when it comes from being stopped.
func orStopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// ensure makes what the gateway owns.
func (s *Service) ensure(ctx context.Context) (jetstream.KeyValue, error) {
	js := s.cfg.Bus.JS
	for name, limits := range s.streams() {
		if err := stream.Ensure(ctx, js, name, limits); err != nil {
			return nil, err
		}
	}
	if err := stream.Ensure(ctx, js, stream.Intake, stream.Limits{Replicas: s.cfg.Events.Replicas}); err != nil {
		return nil, err
	}
	return stream.EnsureKV(ctx, js, stream.Access, 1, s.cfg.Replicas)
}

// streams are the streams that the gateway owns and keeps within bounds. INTAKE is
// as small as what is not moved yet.
func (s *Service) streams() map[string]stream.Limits {
	return map[string]stream.Limits{stream.Events: s.cfg.Events, stream.DeadLetters: s.cfg.DeadLetters, stream.Audit: s.cfg.Audit}
}

// newKeepers makes what keeps these streams within their bounds. An event stays
// until the rule-engine has looked at it.
func (s *Service) newKeepers() error {
	clock, err := retention.NewClock(s.db, s.cfg.Metrics, subsystem, s.cfg.Log, retention.Patience)
	if err != nil {
		return err
	}
	metrics := retention.NewMetrics(s.cfg.Metrics, subsystem)
	for name, limits := range s.streams() {
		cfg := retention.Config{JS: s.cfg.Bus.JS, Stream: name, Limits: limits, Clock: clock, Metrics: metrics, Log: s.cfg.Log}
		if name == stream.Events {
			cfg.Floor = retention.AckFloor(cfg.JS, name, stream.EventsConsumer)
		}
		s.keepers = append(s.keepers, retention.New(cfg))
	}
	return nil
}

// boot waits for the views and brings operators and server key about.
func (s *Service) boot(ctx context.Context, kv jetstream.KeyValue) error {
	if err := s.operators.view.WaitReady(ctx); err != nil {
		return err
	}
	writing, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	// First, as without any operator one is made.
	if err := s.operators.takeOver(writing, kv, s.cfg.Operators); err != nil {
		return err
	}
	if err := s.operators.bootstrap(writing, kv, s.cfg.AdminKey, s.cfg.ServerKey, s.cfg.OnAdminKey); err != nil {
		return err
	}
	if err := s.credentials.view.WaitReady(ctx); err != nil {
		return err
	}
	return s.removals.View().WaitReady(ctx)
}
