package registry

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/removal"
	"github.com/nightjar-edr/nightjar/pkg/store"
	"github.com/nightjar-edr/nightjar/pkg/streamwatch"
	"github.com/nightjar-edr/nightjar/pkg/view"
)

const (
	// version is that of the service's interface on NATS.
	version = "1.0.0"
	// parallel is how many requests are worked on at once.
	parallel = 64
	// requestTimeout is below the time that callers wait, so that they learn
	// the reason.
	requestTimeout = 9 * time.Second
	gcInterval     = 10 * time.Minute
)

var (
	errStarting = errors.New("starting")
	errBehind   = errors.New("catching up with the buckets endpoints and removed")
)

// Service is the endpoint registry. Make it with New and run it with Run.
type Service struct {
	cfg  Config
	db   *store.DB
	kv   jetstream.KeyValue
	view *view.View
	// removed is the bucket of removals, whose view is in removals.
	removed  jetstream.KeyValue
	removals *removal.Removals
	index    *index
	metrics  *metrics
	watch    *streamwatch.Watch
	serving  atomic.Bool
}

// New opens the service's store in cfg.DataDir and reads it. It neither waits
// for NATS nor writes to it. An error that wraps lifecycle.ErrUsage is one of
// cfg.
func New(cfg Config) (*Service, error) {
	if err := checkImport(cfg.Import); err != nil {
		return nil, fmt.Errorf("%w: import: %w", lifecycle.ErrUsage, err)
	}
	db, err := store.Open(store.Options{Dir: cfg.DataDir, Sync: cfg.Sync, Log: cfg.Log})
	if err != nil {
		return nil, err
	}
	s := &Service{cfg: cfg, db: db, index: newIndex()}
	if err := s.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("endpoint registry: %w", err), db.Close())
	}
	views := view.Config{DB: db, JS: cfg.Bus.JS, Room: cfg.Room, Log: cfg.Log, Metrics: view.NewMetrics(cfg.Metrics, subsystem)}
	name, filter := stream.KVStream(stream.Endpoints)
	removed, _ := stream.KVStream(stream.Removed)
	if s.removals, err = removal.New(removal.Config{View: views}); err == nil {
		views.Name, views.Stream, views.Filters, views.Compacted, views.Fold = "endpoints", name, []string{filter}, true, s.fold
		s.view, err = view.New(views)
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	s.metrics = newMetrics(cfg.Metrics, db, s.index)
	s.watch = streamwatch.New(cfg.Metrics, subsystem, cfg.Bus.JS, cfg.Log, name, removed)
	return s, nil
}

// Run makes sure of the buckets, catches up with them, takes over cfg.Import and
// answers requests until ctx ends. Then it finishes those in hand, closes the store and returns nil.
// An error means that the service could not do its work.
func (s *Service) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, s.db.Close()) }()
	s.kv, err = stream.EnsureKV(ctx, s.cfg.Bus.JS, stream.Endpoints, 1, s.cfg.Replicas)
	if err == nil {
		s.removed, err = stream.EnsureKV(ctx, s.cfg.Bus.JS, stream.Removed, 1, s.cfg.Replicas)
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	// Work outlives ctx until the requests in hand are answered.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, work := errgroup.WithContext(work)
	group.Go(func() error { return s.view.Run(work) })
	group.Go(func() error { s.watch.Run(work); return nil })
	group.Go(func() error { return s.removals.Run(work) })
	group.Go(func() error { store.CollectGarbage(work, s.db, gcInterval); return nil })
	group.Go(func() error {
		defer stop()
		return s.serve(ctx, work)
	})
	return group.Wait()
}

// serve answers from when the view has caught up until ctx or work ends.
func (s *Service) serve(ctx, work context.Context) error {
	starting, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(work, cancel)()
	for _, v := range s.views() {
		switch err := v.WaitReady(starting); {
		case errors.Is(err, view.ErrGap):
			<-starting.Done() // stays up to say why it is not ready
			return nil
		case starting.Err() != nil:
			return nil
		case err != nil:
			return err
		}
	}
	if err := s.takeOver(starting); err != nil {
		if starting.Err() != nil {
			return nil
		}
		return err
	}
	svc, err := bus.Serve(work, s.cfg.Bus, access.Registry, version, parallel, requestTimeout, s.metrics.observe)
	if err != nil {
		return err
	}
	defer svc.Stop()
	for subject, handler := range map[string]bus.Handler{
		message.RegistryCreate:  bus.JSON(s.create),
		message.RegistryDelete:  bus.JSON(s.delete),
		message.RegistryGet:     bus.JSON(s.get),
		message.RegistryList:    bus.JSON(s.list),
		message.RegistryBind:    bus.JSON(s.bind),
		message.RegistryRelease: bus.JSON(s.release),
		message.RegistrySeen:    bus.JSON(s.seen),
		message.RegistryImport:  bus.JSON(s.importAll),
		message.RegistryRemove:  bus.JSON(s.remove),
	} {
		s.metrics.failures.WithLabelValues(subject)
		if err := svc.Handle(subject, handler); err != nil {
			return err
		}
	}
	s.serving.Store(true)
	defer s.serving.Store(false)
	s.settleRemovals(starting)
	return nil
}

// Ready returns nil when the service answers and its view is current,
// otherwise the reason why not.
func (s *Service) Ready() error {
	if err := s.cfg.Bus.Ready(); err != nil {
		return err
	}
	for _, v := range s.views() {
		if err := v.Err(); err != nil {
			return err
		}
	}
	if !s.serving.Load() {
		return errStarting
	}
	for _, v := range s.views() {
		if !v.Ready() {
			return errBehind
		}
	}
	return nil
}

// views are the views that the service works by.
func (s *Service) views() []*view.View { return []*view.View{s.view, s.removals.View()} }
