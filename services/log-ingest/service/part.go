package ingest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/retention"
	"github.com/nightjar-edr/nightjar/pkg/view"
)

// Kinds of a part's views.
const (
	eventsView = "events"
	alertsView = "alerts"
)

// part folds the partitions of a piece. It does not change: where the piece
// does, another part takes its place.
type part struct {
	piece
	set            partitionSet
	events, alerts *view.View
	// folders have the lines of the views, in their order.
	folders [2]*folder
	// follow deletes the lines that retention removes from the stream of a
	// folder and its view, until ctx ends.
	follow func(ctx context.Context, f *folder, v *view.View)
	// merge merges chunks until ctx ends.
	merge func(ctx context.Context)
	// current tells that the part has caught up since the service was
	// started. Only the mover uses it.
	current bool
	// stop ends what start has begun, and returns when nothing more is
	// folded.
	stop func()
}

// newPart prepares the views of a piece.
func (s *Service) newPart(p piece) (*part, error) {
	t := &part{piece: p, set: setOf(p.Partitions), stop: func() {}}
	events, alerts, err := newFolders(&s.cfg, s.db, &t.set, s.removals.Generation, s.metrics)
	if err != nil {
		return nil, err
	}
	t.folders = [2]*folder{events, alerts}
	t.follow = func(ctx context.Context, f *folder, v *view.View) {
		retention.Follow(ctx, s.cfg.Bus.JS, f.stream, s.cfg.Log, func(ctx context.Context, below uint64) error {
			v.Ended(below)
			return f.sweep(ctx, below)
		})
	}
	t.merge = func(ctx context.Context) { s.merge(ctx, t) }
	var filters []string
	if !t.set.all() {
		for _, n := range p.Partitions {
			filters = append(filters, "edr.events."+strconv.Itoa(n)+".*")
		}
	}
	t.events, err = view.New(view.Config{
		Name: viewName(eventsView, p.ID), Stream: stream.Events, Filters: filters,
		DB: s.db, JS: s.cfg.Bus.JS, Room: s.cfg.Room, Log: s.cfg.Log, Metrics: s.metrics.views, Trace: s.cfg.Bus.Trace, Fold: events.fold, Pace: pace,
		Removed: s.removals.Reach(stream.Events),
	})
	if err != nil {
		return nil, err
	}
	t.alerts, err = view.New(view.Config{
		Name: viewName(alertsView, p.ID), Stream: stream.Alerts,
		DB: s.db, JS: s.cfg.Bus.JS, Room: s.cfg.Room, Log: s.cfg.Log, Metrics: s.metrics.views, Trace: s.cfg.Bus.Trace, Fold: alerts.fold, Pace: pace,
		Removed: s.removals.Reach(stream.Alerts),
	})
	if err != nil {
		return nil, err
	}
	for i, v := range t.views() {
		t.folders[i].exclusive = v.Exclusive
	}
	return t, nil
}

func (t *part) views() [2]*view.View { return [2]*view.View{t.events, t.alerts} }

// forget removes what the part holds of an endpoint's lines from before a
// generation.
func (t *part) forget(endpoint string, generation uint64) error {
	for i, v := range t.views() {
		if err := v.Exclusive(func() error { return t.folders[i].forget(endpoint, generation) }); err != nil {
			return err
		}
	}
	return nil
}

// start folds until ctx ends or the part is stopped. What fails ends the group.
func (t *part) start(ctx context.Context, g *errgroup.Group) {
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	run := func(f func() error) {
		work.Add(1)
		g.Go(func() error {
			defer work.Done()
			return f()
		})
	}
	run(func() error { t.merge(ctx); return nil })
	for i, v := range t.views() {
		run(func() error { return v.Run(ctx) })
		run(func() error { t.follow(ctx, t.folders[i], v); return nil })
	}
	t.stop = func() { cancel(); work.Wait() }
}

// ready returns nil when both views are up to date, otherwise why not.
func (t *part) ready() error {
	for i, v := range t.views() {
		if err := v.Err(); err != nil {
			return err
		}
		if !v.Ready() {
			return fmt.Errorf("view %s is catching up", viewName([]string{eventsView, alertsView}[i], t.ID))
		}
	}
	return nil
}

// settled tells whether both views have caught up, or stand still for a gap,
// and whether one does.
func (t *part) settled() (settled, gap bool) {
	settled = true
	for _, v := range t.views() {
		switch {
		case errors.Is(v.Err(), view.ErrGap):
			gap = true
		case !v.Ready():
			settled = false
		}
	}
	return settled, gap
}
