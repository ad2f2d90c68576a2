package dispatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/beat"
	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/objects"
	"github.com/nightjar-edr/nightjar/pkg/retention"
	"github.com/nightjar-edr/nightjar/pkg/store"
	"github.com/nightjar-edr/nightjar/pkg/streamwatch"
	"github.com/nightjar-edr/nightjar/pkg/view"
)

const (
	version        = "1.0.0"
	parallel       = 64
	requestTimeout = 10 * time.Second
	// expireEvery is how often commands without a result are looked for.
	expireEvery = 5 * time.Second
	// tidyEvery is how often objects without a command are looked for.
	tidyEvery = time.Hour
	// gcEvery is how often the store gives back space.
	gcEvery = 10 * time.Minute
)

// Service is command-dispatch. Make it with New and run it once with Run.
type Service struct {
	cfg     Config
	log     *slog.Logger
	db      *store.DB
	view    *view.View
	metrics *metrics
	watch   *streamwatch.Watch
	// now is what the clock says, judged what is believed of it.
	now, judged func() time.Time

	queued, sent atomic.Int64
	serving      atomic.Bool

	// Set by Run before anything else uses them.
	kv      jetstream.KeyValue
	objects jetstream.ObjectStore
	content *objects.Store
	files   jetstream.Stream
}

// New opens the service's store. It waits for nothing.
func New(cfg Config) (*Service, error) {
	if cfg.History == 0 {
		cfg.History = DefaultHistory
	}
	if cfg.MaxQueued == 0 {
		cfg.MaxQueued = DefaultMaxQueued
	}
	if cfg.MaxQueued < 0 {
		return nil, fmt.Errorf("%w: max-queued %d: want at least 1", lifecycle.ErrUsage, cfg.MaxQueued)
	}
	db, err := store.Open(store.Options{Dir: cfg.DataDir, Sync: cfg.Sync, Log: cfg.Log})
	if err != nil {
		return nil, err
	}
	s := &Service{cfg: cfg, log: cfg.Log, db: db, now: cfg.now, judged: cfg.judged}
	if s.judged == nil {
		s.judged = s.now
	}
	if s.now == nil {
		clock, err := retention.NewClock(db, cfg.Metrics, subsystem, cfg.Log, clockPatience)
		if err != nil {
			return nil, errors.Join(err, db.Close())
		}
		s.now, s.judged = time.Now, clock.Now
	}
	c, err := s.count()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("count commands: %w", err), db.Close())
	}
	s.queued.Store(c.queued)
	s.sent.Store(c.sent)
	name, filter := stream.KVStream(stream.Commands)
	s.view, err = view.New(view.Config{
		Name: stream.Commands, Stream: name, Filters: []string{filter}, Compacted: true,
		DB: db, JS: cfg.Bus.JS, Room: cfg.Room, Log: cfg.Log, Metrics: view.NewMetrics(cfg.Metrics, subsystem), Fold: s.fold,
	})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	s.metrics = newMetrics(cfg.Metrics, s)
	files, _ := stream.ObjectStream(stream.Files)
	s.watch = streamwatch.New(cfg.Metrics, subsystem, cfg.Bus.JS, cfg.Log, name, files)
	return s, nil
}

// Ready returns nil when the service answers and its view has caught up.
func (s *Service) Ready() error {
	if err := s.cfg.Bus.Ready(); err != nil {
		return err
	}
	if err := s.view.Err(); err != nil {
		return err
	}
	if !s.view.Ready() {
		return errors.New("view of commands is catching up")
	}
	if !s.serving.Load() {
		return errors.New("starting")
	}
	return nil
}

// Run works until ctx ends, finishes the requests in hand, closes the store
// and returns nil.
func (s *Service) Run(ctx context.Context) (err error) {
	defer func() {
		if cerr := s.db.Close(); cerr != nil {
			err = errors.Join(err, fmt.Errorf("close store: %w", cerr))
		}
	}()
	if err := s.bind(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	// The view outlives ctx, because requests in hand may wait for it.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	ctx, cancel := context.WithCancel(ctx)
	viewEnded := make(chan error, 1)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		s.watch.Run(work)
	}()
	go func() {
		defer cancel()
		viewEnded <- s.view.Run(work)
	}()
	serveErr := s.serve(ctx, work)
	stop()
	<-watched
	if err := <-viewEnded; err != nil {
		return err
	}
	return serveErr
}

// bind creates the bucket and the object store.
func (s *Service) bind(ctx context.Context) (err error) {
	js := s.cfg.Bus.JS
	if s.kv, err = stream.EnsureKV(ctx, js, stream.Commands, 1, s.cfg.Replicas); err != nil {
		return err
	}
	if s.objects, err = stream.EnsureObjects(ctx, js, stream.Files, stream.Limits{Replicas: s.cfg.Replicas}); err != nil {
		return err
	}
	if s.files, err = js.Stream(ctx, "OBJ_"+stream.Files); err != nil {
		return fmt.Errorf("stream OBJ_%s: %w", stream.Files, err)
	}
	s.content, err = objects.Open(ctx, js, stream.Files)
	return err
}

// serve answers requests once the view has caught up, until ctx ends. work is
// the context of requests.
func (s *Service) serve(ctx, work context.Context) error {
	if err := s.view.WaitReady(ctx); err != nil {
		if ctx.Err() == nil {
			// The view stands still: be there, not ready, and say why.
			<-ctx.Done()
		}
		return nil
	}
	srv, err := bus.Serve(work, s.cfg.Bus, access.Commands, version, parallel, requestTimeout, s.metrics.observe)
	if err != nil {
		return err
	}
	defer srv.Stop()
	for subject, h := range map[string]bus.Handler{
		message.CommandsQueue:  bus.JSON(s.queue),
		message.CommandsGet:    bus.JSON(s.get),
		message.CommandsList:   bus.JSON(s.list),
		message.CommandsNext:   bus.JSON(s.next),
		message.CommandsResult: bus.JSON(s.result),
		message.CommandsCancel: bus.JSON(s.cancel),
		message.CommandsForget: bus.JSON(s.forget),
	} {
		if err := srv.Handle(subject, h); err != nil {
			return err
		}
	}
	s.serving.Store(true)
	defer s.serving.Store(false)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	tasks.Go(func() { s.every(ctx, expireEvery, "expire commands", s.expire) })
	tasks.Go(func() { s.every(ctx, tidyEvery, "remove objects without a command", s.tidy) })
	tasks.Go(func() { store.CollectGarbage(ctx, s.db, gcEvery) })
	<-ctx.Done()
	return nil
}

// every calls f at each beat of an interval until ctx ends.
func (s *Service) every(ctx context.Context, interval time.Duration, what string, f func(context.Context) error) {
	for lifecycle.Sleep(ctx, beat.Next(interval)) == nil {
		if err := f(ctx); err != nil && ctx.Err() == nil {
			s.metrics.errors.Inc()
			s.log.Error("task failed, will be tried again", "task", what, "error", err)
		}
	}
}

// current brings the view up to what the bucket holds now.
func (s *Service) current(ctx context.Context) error { return s.view.Sync(ctx) }
