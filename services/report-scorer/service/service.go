package scorer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
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
	parallel = 32
	// requestTimeout is below the time that callers wait, so that they learn
	// the reason.
	requestTimeout = 9 * time.Second
	gcInterval     = 10 * time.Minute
	// alertsPace is the least time between two writes of the counts: alerts
	// that come meanwhile share one. Who asks for a clear does not wait for it.
	alertsPace = 250 * time.Millisecond
)

var (
	errStarting = errors.New("starting")
	errBehind   = errors.New("catching up with the stream ALERTS and the buckets reports and removed")
)

// Service is the report scorer. Make it with New and run it with Run.
type Service struct {
	cfg Config
	db  *store.DB
	kv  jetstream.KeyValue
	// alerts folds the stream ALERTS, clears the bucket reports.
	alerts, clears *view.View
	removals       *removal.Removals
	metrics        *metrics
	watch          *streamwatch.Watch
	serving        atomic.Bool
	// work ends when the service stops; set by Run before the views run.
	work context.Context

	marksMu sync.RWMutex
	marks   map[string]mark

	// rebuilding is held while a record is made anew.
	rebuilding sync.Mutex
	// stale tells that there may be counts to sweep.
	stale atomic.Bool
}

// New opens the service's store in cfg.DataDir and reads it. It neither waits
// for NATS nor writes to it.
func New(cfg Config) (*Service, error) {
	db, err := store.Open(store.Options{Dir: cfg.DataDir, Sync: cfg.Sync, Log: cfg.Log})
	if err != nil {
		return nil, err
	}
	s := &Service{cfg: cfg, db: db, marks: map[string]mark{}, work: context.Background()}
	if err := s.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("report scorer: %w", err), db.Close())
	}
	return s, nil
}

func (s *Service) open() (err error) {
	if err := s.loadMarks(); err != nil {
		return err
	}
	s.metrics = newMetrics(s.cfg.Metrics, s.db)
	err = s.db.View(func(txn *badger.Txn) error {
		n, err := readCensus(txn)
		s.metrics.census.Set(float64(n))
		return err
	})
	if err != nil {
		return err
	}
	s.stale.Store(true)
	views := view.NewMetrics(s.cfg.Metrics, subsystem)
	s.removals, err = removal.New(removal.Config{
		View: view.Config{DB: s.db, JS: s.cfg.Bus.JS, Room: s.cfg.Room, Log: s.cfg.Log, Metrics: views},
		Obey: func(r removal.Removal) error { return s.alerts.Exclusive(func() error { return s.forget(r) }) },
	})
	if err != nil {
		return err
	}
	bucket, filter := stream.KVStream(stream.Reports)
	s.watch = streamwatch.New(s.cfg.Metrics, subsystem, s.cfg.Bus.JS, s.cfg.Log, bucket)
	s.clears, err = view.New(view.Config{
		Name: "reports", Stream: bucket, Filters: []string{filter}, Compacted: true,
		DB: s.db, JS: s.cfg.Bus.JS, Room: s.cfg.Room, Log: s.cfg.Log, Metrics: views, Fold: s.foldMarks,
	})
	if err != nil {
		return err
	}
	s.alerts, err = view.New(view.Config{
		Name: "alerts", Stream: stream.Alerts, Filters: []string{subject.AllAlerts},
		DB: s.db, JS: s.cfg.Bus.JS, Room: s.cfg.Room, Log: s.cfg.Log, Metrics: views, Trace: s.cfg.Bus.Trace, Fold: s.foldAlerts,
		Pace: alertsPace, Removed: s.removals.Reach(stream.Alerts),
	})
	return err
}

// Run makes sure of the bucket, catches up with it and then with the alerts,
// and answers requests until ctx ends. Then it finishes those in hand, closes
// the store and returns nil. An error means that the service could not do its
// work.
func (s *Service) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, s.db.Close()) }()
	s.kv, err = stream.EnsureKV(ctx, s.cfg.Bus.JS, stream.Reports, 1, s.cfg.Replicas)
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
	s.work = work
	group.Go(func() error { return s.clears.Run(work) })
	group.Go(func() error { return s.removals.Run(work) })
	group.Go(func() error { s.keepHouse(work); return nil })
	group.Go(func() error { s.watch.Run(work); return nil })
	group.Go(func() error {
		defer stop()
		return s.serve(ctx, work, func() { group.Go(func() error { return s.alerts.Run(work) }) })
	})
	return group.Wait()
}

// keepHouse gives space back until ctx ends.
func (s *Service) keepHouse(ctx context.Context) {
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() { store.CollectGarbage(ctx, s.db, gcInterval) })
	lifecycle.Repeat(ctx, gcInterval, func() {
		if s.stale.Swap(false) {
			if err := s.sweep(); err != nil {
				s.stale.Store(true)
				s.cfg.Log.Warn("counts that nothing refers to stay for now", "error", err)
			}
		}
	})
}

// serve answers from when the views have caught up until ctx or work ends.
// foldAlerts is called when every clear and every removal is known.
func (s *Service) serve(ctx, work context.Context, foldAlerts func()) error {
	starting, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(work, cancel)()
	for _, v := range []*view.View{s.clears, s.removals.View()} {
		if err := caughtUp(starting, v); err != nil || starting.Err() != nil {
			return err
		}
	}
	foldAlerts()
	if err := caughtUp(starting, s.alerts); err != nil || starting.Err() != nil {
		return err
	}
	svc, err := bus.Serve(work, s.cfg.Bus, access.Scorer, version, parallel, requestTimeout, s.metrics.observe)
	if err != nil {
		return err
	}
	defer svc.Stop()
	for subject, handler := range map[string]bus.Handler{
		message.ReportsGet:   bus.JSON(s.get),
		message.ReportsList:  s.list,
		message.ReportsClear: bus.JSON(s.clear),
	} {
		s.metrics.failures.WithLabelValues(subject)
		if err := svc.Handle(subject, handler); err != nil {
			return err
		}
	}
	s.serving.Store(true)
	defer s.serving.Store(false)
	<-starting.Done()
	return nil
}

// caughtUp waits until a view has caught up or ctx ends, and fails when the
// view cannot. At a gap it waits for the end of ctx, as a service stays up to
// say why it is not ready.
func caughtUp(ctx context.Context, v *view.View) error {
	err := v.WaitReady(ctx)
	if errors.Is(err, view.ErrGap) {
		<-ctx.Done()
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Ready returns nil when the service answers and its views are current,
// otherwise the reason why not.
func (s *Service) Ready() error {
	if err := s.cfg.Bus.Ready(); err != nil {
		return err
	}
	for _, v := range []*view.View{s.clears, s.removals.View(), s.alerts} {
		if err := v.Err(); err != nil {
			return err
		}
	}
	if !s.serving.Load() {
		return errStarting
	}
	if !s.clears.Ready() || !s.removals.View().Ready() || !s.alerts.Ready() {
		return errBehind
	}
	return nil
}
