package ingest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nightjar-edr/nightjar/pkg/removal"
	"github.com/nightjar-edr/nightjar/pkg/retention"
	"github.com/nightjar-edr/nightjar/pkg/store"
	"github.com/nightjar-edr/nightjar/pkg/streamwatch"
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
)

// Service is log-ingest. Make it with New and run it with Run.
type Service struct {
	cfg       Config
	db        *store.DB
	holding   holding
	holders   *holders
	artifacts *artifactIndex
	removals  *removal.Removals
	reader    *logstore.Reader
	metrics   *metrics
	merging   *merging
	watch     *streamwatch.Watch
}

// New opens the service's store and prepares its views. Its errors wrap
// store.ErrInUse when another process has the store open.
func New(cfg Config) (*Service, error) {
	own, err := newPartitionSet(cfg.Partitions)
	if err != nil {
		return nil, err
	}
	if cfg.MergeAfter == 0 {
		cfg.MergeAfter = DefaultMergeAfter
	}
	s := &Service{cfg: cfg, holding: holding{own: own}}
	if s.db, err = openStore(&cfg); err != nil {
		return nil, err
	}
	s.metrics = newMetrics(cfg.Metrics, s.db)
	s.watch = streamwatch.New(cfg.Metrics, subsystem, cfg.Bus.JS, cfg.Log, artifactStream)
	s.reader = logstore.NewReader(s.db)
	s.merging = newMerging(cfg.Metrics)
	registerWaiting(cfg.Metrics, s.reader)
	if err := s.open(); err != nil {
		return nil, errors.Join(err, s.db.Close())
	}
	return s, nil
}

// open makes what stands on the store.
func (s *Service) open() (err error) {
	views := view.Config{DB: s.db, JS: s.cfg.Bus.JS, Room: s.cfg.Room, Log: s.cfg.Log, Metrics: s.metrics.views}
	s.removals, err = removal.New(removal.Config{View: views, Obey: s.obey, Clear: map[string]func(context.Context, removal.Removal) error{
		artifactStream: func(ctx context.Context, r removal.Removal) error { return s.artifacts.clear(ctx, r) },
	}})
	if err != nil {
		return err
	}
	if err := s.arrange(); err != nil {
		return err
	}
	s.artifacts, err = newArtifactIndex(&s.cfg, s.db, s.removals, s.metrics.views)
	return err
}

// arrange makes the parts of the store those of the partitions that the
// replica is to have.
func (s *Service) arrange() error {
	before, err := readLayout(s.db)
	if err != nil {
		return fmt.Errorf("store %s: %w", s.cfg.DataDir, err)
	}
	l := before.clone()
	l.plan(&s.holding.own)
	if err := l.write(s.db, before); err != nil {
		return fmt.Errorf("store %s: %w", s.cfg.DataDir, err)
	}
	s.holding.layout = l
	for _, p := range l.Pieces {
		t, err := s.newPart(p)
		if err != nil {
			return err
		}
		s.holding.parts = append(s.holding.parts, t)
	}
	s.holders = newHolders(s.cfg.Bus, s.cfg.Log, l.Replica, s.cfg.Alone)
	return nil
}

// Ready returns nil when the service has caught up with its streams, answers
// for all that it owns and is connected, otherwise the reason why not.
func (s *Service) Ready() error {
	if err := s.holding.ready(); err != nil {
		return err
	}
	for _, v := range []struct {
		name string
		view *view.View
	}{{"artifacts", s.artifacts.view}, {"removals", s.removals.View()}} {
		if err := v.view.Err(); err != nil {
			return err
		}
		if !v.view.Ready() {
			return fmt.Errorf("view %s is catching up", v.name)
		}
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
	g.Go(func() error { return s.removals.Run(failed) })
	g.Go(func() error { return s.artifacts.view.Run(failed) })
	g.Go(func() error { s.artifacts.tidyUp(failed); return nil })
	g.Go(func() error { store.CollectGarbage(failed, s.db, gcInterval); return nil })
	g.Go(func() error { s.watch.Run(failed); return nil })
	g.Go(func() error { s.artifacts.keeper.Run(failed); return nil })
	g.Go(func() error {
		retention.Follow(failed, s.cfg.Bus.JS, artifactStream, s.cfg.Log, s.artifacts.drop)
		return nil
	})
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	context.AfterFunc(failed, cancel)

	err = s.move(running, failed, g)
	stopViews()
	return errors.Join(err, g.Wait())
}
