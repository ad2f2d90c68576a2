package ingest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sync/errgroup"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/store"
	"github.com/nightjar-edr/nightjar/pkg/view"
	"github.com/nightjar-edr/nightjar/services/log-ingest/internal/logstore"
)

const (
	version = "1.0.0"
	// queryTimeout bounds the work on a page.
	queryTimeout = 10 * time.Second
	gcInterval   = 5 * time.Minute
	// pace is how long lines may wait to share a chunk and a transaction with
	// those that follow, when one has just been written.
	pace = time.Second
	// sweepInterval is how often what has expired is deleted.
	sweepInterval = time.Hour
)

// Service is log-ingest. Make it with New and run it with Run.
type Service struct {
	cfg            Config
	own            partitionSet
	db             *badger.DB
	events, alerts *view.View
	artifacts      *artifactIndex
	reader         *logstore.Reader
	metrics        *metrics
	// answering is set while the service is announced.
	answering atomic.Bool
}

// New opens the service's store and prepares its views. Its errors wrap
// ErrPartitions when the store was built for other partitions, and
// store.ErrInUse when another process has it open.
func New(cfg Config) (*Service, error) {
	own, err := newPartitionSet(cfg.Partitions)
	if err != nil {
		return nil, err
	}
	s := &Service{cfg: cfg, own: own}
	if s.db, err = openStore(&cfg, &s.own); err != nil {
		return nil, err
	}
	s.metrics = newMetrics(cfg.Metrics, s.db)
	s.reader = logstore.NewReader(s.db)
	events, alerts := newFolders(&s.cfg, s.db, &s.own, s.metrics)
	var filters []string
	if !s.own.all() {
		for _, p := range s.own.list() {
			filters = append(filters, "edr.events."+strconv.Itoa(p)+".*")
		}
	}
	s.events, err = view.New(view.Config{
		Name: "events", Stream: stream.Events, Filters: filters, DB: s.db, JS: cfg.Bus.JS, Log: cfg.Log, Metrics: s.metrics.views, Fold: events.fold, Pace: pace,
	})
	if err == nil {
		s.alerts, err = view.New(view.Config{
			Name: "alerts", Stream: stream.Alerts, DB: s.db, JS: cfg.Bus.JS, Log: cfg.Log, Metrics: s.metrics.views, Fold: alerts.fold, Pace: pace,
		})
	}
	if err == nil {
		s.artifacts, err = newArtifactIndex(&s.cfg, s.db, s.metrics.views)
	}
	if err != nil {
		return nil, errors.Join(err, s.db.Close())
	}
	return s, nil
}

// Ready returns nil when the service has caught up with its streams and is
// connected, otherwise the reason why not.
func (s *Service) Ready() error {
	for _, v := range []struct {
		name string
		view *view.View
	}{{"events", s.events}, {"alerts", s.alerts}, {"artifacts", s.artifacts.view}} {
		if err := v.view.Err(); err != nil {
			return err
		}
		if !v.view.Ready() {
			return fmt.Errorf("view %s is catching up", v.name)
		}
	}
	if !s.answering.Load() {
		return errors.New("does not answer yet")
	}
	return s.cfg.Bus.Ready()
}

// Run folds and answers until ctx ends, then finishes the answers in hand and
// closes the store. Where a view stands still for a gap in its stream, it
// goes on with the other one and stays not ready.
func (s *Service) Run(ctx context.Context) (err error) {
	defer func() {
		if cerr := s.db.Close(); cerr != nil {
			err = errors.Join(err, fmt.Errorf("close store: %w", cerr))
		}
	}()
	if err := s.artifacts.ensure(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	viewsCtx, stopViews := context.WithCancel(context.WithoutCancel(ctx))
	defer stopViews()
	g, failed := errgroup.WithContext(viewsCtx)
	g.Go(func() error { return s.events.Run(failed) })
	g.Go(func() error { return s.alerts.Run(failed) })
	g.Go(func() error { return s.artifacts.view.Run(failed) })
	g.Go(func() error { s.artifacts.tidyUp(failed); return nil })
	g.Go(func() error { store.CollectGarbage(failed, s.db, gcInterval); return nil })
	g.Go(func() error { s.sweep(failed); return nil })
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	context.AfterFunc(failed, cancel)

	answering, err := s.answer(running)
	if err == nil {
		<-running.Done()
	}
	s.answering.Store(false)
	if answering != nil {
		answering.Stop()
	}
	stopViews()
	return errors.Join(err, g.Wait())
}

// sweep deletes what has expired, at the start and from time to time, until
// ctx ends.
func (s *Service) sweep(ctx context.Context) {
	if s.cfg.RetentionEvents <= 0 && s.cfg.RetentionAlerts <= 0 {
		return
	}
	t := time.NewTicker(sweepInterval)
	defer t.Stop()
	for {
		deleted, err := logstore.Sweep(ctx, s.db)
		s.metrics.swept.Add(float64(deleted))
		if err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn("deleting what has expired", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// answer announces the service once it has caught up. It returns nil, nil
// when ctx ends before.
func (s *Service) answer(ctx context.Context) (*bus.Service, error) {
	for _, v := range []*view.View{s.events, s.alerts, s.artifacts.view} {
		if err := v.WaitReady(ctx); err != nil {
			if errors.Is(err, view.ErrGap) {
				continue // what is stored can still be asked for
			}
			return nil, nil
		}
	}
	parallel := 2 * runtime.GOMAXPROCS(0)
	svc, err := bus.Serve(context.WithoutCancel(ctx), s.cfg.Bus, access.Ingest, version, parallel, queryTimeout, s.metrics.observe)
	if err != nil {
		return nil, err
	}
	subjects := []string{querySubject}
	if !s.own.all() {
		subjects = subjects[:0]
		for _, p := range s.own.list() {
			subjects = append(subjects, subject.Logs(p, message.LogsQuery))
		}
	}
	for _, subj := range subjects {
		if err := svc.Handle(subj, s.query); err != nil {
			return svc, err
		}
	}
	if err := svc.Handle(message.ArtifactsList, bus.JSON(s.artifacts.list)); err != nil {
		return svc, err
	}
	s.answering.Store(true)
	s.cfg.Log.Info("answering", "partitions", len(s.own.list()))
	return svc, nil
}
