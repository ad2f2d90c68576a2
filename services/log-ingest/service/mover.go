package ingest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nightjar-edr/nightjar/pkg/beat"
	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/view"
	"github.com/nightjar-edr/nightjar/services/log-ingest/internal/logstore"
)

const (
	// moveStep is how often the mover looks what can be done while something
	// is to be done, idleStep while nothing is, and aloneStep where no other
	// replica can change that.
	moveStep  = 20 * time.Millisecond
	idleStep  = sayEvery
	aloneStep = 10 * time.Second
)

// mover answers for the partitions that the replica has all of, and brings it
// to those that it is to have. It is one goroutine.
type mover struct {
	*Service
	// folding is the context of the views, group what they run in.
	folding context.Context
	group   *errgroup.Group
	// svc is how requests are answered now, nil while none is.
	svc *bus.Service
	// dropping are the partitions that are being dropped; what comes of it is
	// told on dropped, which is nil while none is.
	dropping partitionSet
	dropped  chan error
}

// move runs until ctx ends, and then finishes the answers in hand.
func (s *Service) move(ctx, folding context.Context, g *errgroup.Group) error {
	m := &mover{Service: s, folding: folding, group: g}
	defer func() {
		s.holding.answer(partitionSet{}, false)
		if m.svc != nil {
			m.svc.Stop()
		}
	}()
	stop, err := s.holders.listen()
	if err != nil {
		return err
	}
	defer stop()
	for _, t := range s.holding.parts {
		t.start(folding, g)
	}
	for {
		for _, step := range []func(ctx context.Context) error{m.settle, m.release, m.drop, m.announce} {
			if err := step(ctx); err != nil {
				return err
			}
		}
		s.holders.say(s.holding.complete())
		pause := time.NewTimer(m.pause())
		select {
		case <-ctx.Done():
			pause.Stop()
			return nil
		case err := <-m.dropped:
			pause.Stop()
			m.dropped = nil
			if err := m.haveDropped(err); err != nil {
				return err
			}
		case <-pause.C:
		}
	}
}

// pause is how long nothing has to be done, as far as is known.
func (m *mover) pause() time.Duration {
	n := m.holding.states()
	m.metrics.partitions.set(n)
	if n[stateBuilding] > 0 || n[stateLeaving] > 0 || !m.holding.listing {
		return moveStep
	}
	if m.cfg.Alone {
		return beat.Next(aloneStep)
	}
	return idleStep
}

// settle notes the parts that have caught up. One that was never complete and
// whose streams have lost what it had not got to begins anew, as nobody was
// ever answered from it.
func (m *mover) settle(context.Context) error {
	for _, t := range slices.Clone(m.holding.parts) {
		if t.current {
			continue
		}
		settled, gap := t.settled()
		switch {
		case gap && !t.Built:
			m.cfg.Log.Warn("a build has lost its stream and begins anew", "partitions", t.Partitions)
			if err := m.take(t, t.set); err != nil {
				return err
			}
		case settled && !t.Built:
			l := m.holding.layout.clone()
			l.Pieces[l.index(t.ID)].Built = true
			if err := m.holding.replace(m.db, l, m.holding.parts); err != nil {
				return err
			}
			t.Built, t.current = true, true
			m.cfg.Log.Info("partitions are built", "partitions", t.Partitions)
		case settled:
			t.current = true
		}
	}
	return nil
}

// release gives up the partitions that are no longer owned and that another
// replica holds.
func (m *mover) release(ctx context.Context) error {
	foreign, others := m.holding.own.complement(), m.holders.others()
	foreign = foreign.and(&others)
	for _, t := range slices.Clone(m.holding.parts) {
		gone := t.set.and(&foreign)
		if gone.empty() {
			continue
		}
		// Nobody is answered from them any more when they are touched.
		keep := gone.complement()
		if err := m.answerFor(ctx, m.holding.answered.and(&keep), m.holding.listing); err != nil {
			return err
		}
		m.cfg.Log.Info("partitions are left to their owner", "partitions", gone.list())
		if err := m.take(t, gone); err != nil {
			return err
		}
	}
	return nil
}

// take takes partitions from a part, which are not answered for, so that they
// are dropped. What is left of the part goes on.
func (m *mover) take(t *part, gone partitionSet) error {
	t.stop()
	m.holding.changing.Lock()
	defer m.holding.changing.Unlock()
	l := m.holding.layout.clone()
	l.release(t.ID, &gone)
	parts := slices.DeleteFunc(slices.Clone(m.holding.parts), func(o *part) bool { return o == t })
	var rest *part
	if i := l.index(t.ID); i >= 0 {
		var err error
		if rest, err = m.newPart(l.Pieces[i]); err != nil {
			return err
		}
		rest.current = t.current
		parts = append(parts, rest)
	} else {
		for _, kind := range []string{eventsView, alertsView} {
			m.metrics.views.Forget(viewName(kind, t.ID))
		}
	}
	if err := m.holding.replace(m.db, l, parts); err != nil {
		return err
	}
	if rest != nil {
		rest.start(m.folding, m.group)
	}
	return nil
}

// drop begins to drop what is to be dropped.
func (m *mover) drop(context.Context) error {
	if m.dropped != nil || len(m.holding.layout.Dropping) == 0 {
		return nil
	}
	gone, done := setOf(m.holding.layout.Dropping), make(chan error, 1)
	m.dropping, m.dropped = gone, done
	m.group.Go(func() error {
		n, err := logstore.Drop(m.folding, m.db, gone.owns)
		if err == nil {
			m.cfg.Log.Info("partitions are dropped", "partitions", gone.list(), "entries", n)
		}
		done <- err
		return nil
	})
	return nil
}

// haveDropped notes that the partitions are dropped, and begins to build those
// of them that are owned again.
func (m *mover) haveDropped(err error) error {
	if err != nil {
		if m.folding.Err() != nil {
			return nil
		}
		return fmt.Errorf("drop partitions %v: %w", m.dropping.list(), err)
	}
	m.holding.changing.Lock()
	defer m.holding.changing.Unlock()
	l := m.holding.layout.clone()
	l.Dropping = slices.DeleteFunc(l.Dropping, func(p int) bool { return m.dropping[p] })
	l.plan(&m.holding.own)
	parts := slices.Clone(m.holding.parts)
	var added []*part
	for _, p := range l.Pieces {
		if m.holding.layout.index(p.ID) >= 0 {
			continue
		}
		t, err := m.newPart(p)
		if err != nil {
			return err
		}
		added = append(added, t)
	}
	if err := m.holding.replace(m.db, l, append(parts, added...)); err != nil {
		return err
	}
	for _, t := range added {
		t.start(m.folding, m.group)
	}
	return nil
}

// announce answers for all partitions of which the replica has all, and for
// artifacts once their index has caught up, but for nothing before it obeys the
// removals. What stands still for a gap can still be asked for.
func (m *mover) announce(ctx context.Context) error {
	if v := m.removals.View(); m.svc == nil && !v.Ready() && !errors.Is(v.Err(), view.ErrGap) {
		return nil
	}
	v := m.artifacts.view
	listing := m.holding.listing || v.Ready() || errors.Is(v.Err(), view.ErrGap)
	return m.answerFor(ctx, m.holding.held(func(t *part) bool { return t.current }), listing)
}

// answerFor lets requests for some partitions be answered, and for artifacts if
// listing is set, and no others. When it returns the answers to others have
// been given.
func (m *mover) answerFor(ctx context.Context, want partitionSet, listing bool) error {
	h := &m.holding
	if want == h.answered && listing == h.listing {
		return nil
	}
	before := m.svc
	m.svc = nil
	h.admit(want)
	if !want.empty() || listing {
		svc, err := bus.Serve(context.WithoutCancel(ctx), m.cfg.Bus, access.Ingest, version, 2*runtime.GOMAXPROCS(0), queryTimeout, m.metrics.observe)
		if err != nil {
			m.svc = before
			return err
		}
		m.svc = svc
	}
	// The new announcement is made before the old one ends, so that there is
	// one at any time. Both belong to one queue group.
	err := m.handle(want, listing)
	if before != nil {
		before.Stop()
	}
	if err != nil {
		return err
	}
	h.answer(want, listing)
	m.cfg.Log.Info("answering", "partitions", len(want.list()), "artifacts", listing)
	return nil
}

// handle subscribes to the requests for some partitions and for artifacts.
func (m *mover) handle(partitions partitionSet, listing bool) error {
	handlers := map[string]bus.Handler{}
	for verb, h := range map[string]bus.Handler{message.LogsQuery: m.query, message.LogsCount: bus.JSON(m.count)} {
		if partitions.all() {
			handlers[allPartitions+verb] = h
			continue
		}
		for _, p := range partitions.list() {
			handlers[subject.Logs(p, verb)] = h
		}
	}
	if listing {
		handlers[message.ArtifactsList] = bus.JSON(m.artifacts.list)
		handlers[message.ArtifactsCleared] = bus.JSON(m.cleared)
	}
	for subj, h := range handlers {
		if err := m.svc.Handle(subj, h); err != nil {
			return err
		}
	}
	return nil
}
