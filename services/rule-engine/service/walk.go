package ruleengine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/semaphore"

	"github.com/nightjar-edr/nightjar/pkg/beat"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

// How batches are taken from EVENTS.
const (
	// maxAckPending bounds the batches that all replicas have in hand.
	maxAckPending = 256
	// pullBytes bounds what one pull brings. It must be more than the largest
	// message takes, for a larger one would never be delivered.
	pullBytes = stream.MaxMessage + 1<<20
	// pullMessages is what the client reserves room for; status messages of
	// the server take from it, too, and what finds no room is dropped, to come
	// again only after ackWait.
	pullMessages = 128
	// maxOutstanding bounds the alerts that wait for their acknowledgement. A
	// worker waits for room: each alert is a write to stable storage, and
	// batches can bring them faster than these are done.
	maxOutstanding = 512
	// fresh is the age up to which a batch counts as caught up with.
	fresh = 10 * time.Second
)

// walk is the way of batches from EVENTS through the workers.
type walk struct {
	s    *Service
	jobs chan jetstream.Msg
	// settling are batches whose alerts are on their way.
	settling sync.WaitGroup
	acks     acks
	// room is what is left of maxOutstanding.
	room *semaphore.Weighted
	// suspects serialises batches that were delivered before, so that one that
	// kills the process is told from those that died with it.
	suspects sync.Mutex

	stop    context.CancelFunc
	stopped context.Context

	bound    atomic.Bool
	caughtUp atomic.Bool

	mu     sync.Mutex
	inHand map[jetstream.Msg]struct{}
	// failure is why batches cannot be taken, refusal why alerts cannot be
	// written; nil when they can.
	failure, refusal error
}

func newWalk(s *Service) *walk {
	w := &walk{s: s, jobs: make(chan jetstream.Msg), room: semaphore.NewWeighted(maxOutstanding), inHand: make(map[jetstream.Msg]struct{})}
	w.acks = acks{w: w, every: s.cfg.ackEvery}
	w.stopped, w.stop = context.WithCancel(context.Background())
	return w
}

// abort makes run stop as if its ctx had ended.
func (w *walk) abort() { w.stop() }

// Ready returns nil when batches are taken and worked on without a backlog from
// before the start.
func (w *walk) Ready() error {
	w.mu.Lock()
	failure, refusal := w.failure, w.refusal
	w.mu.Unlock()
	switch {
	case failure != nil:
		return fmt.Errorf("events cannot be read: %w", failure)
	case refusal != nil:
		return fmt.Errorf("alerts are refused: %w", refusal)
	case !w.bound.Load():
		return errors.New("waiting for the stream of events")
	case !w.caughtUp.Load():
		return errors.New("catching up with the events")
	}
	return nil
}

func (w *walk) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failure = err
}

// refuse notes whether the stream ALERTS takes messages.
func (w *walk) refuse(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if (err == nil) != (w.refusal == nil) {
		if err != nil {
			w.s.cfg.Log.Error("alerts are refused, their batches are tried again", "error", err)
		} else {
			w.s.cfg.Log.Info("alerts are accepted again")
		}
	}
	w.refusal = err
}

// run takes batches until ctx ends, and returns when those in hand are
// finished. Work is the context of what goes on meanwhile.
func (w *walk) run(ctx, work context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(w.stopped, cancel)()

	background, stop := context.WithCancel(work)
	var watching, workers sync.WaitGroup
	watching.Go(func() { w.keepAlive(background) })
	for range w.s.cfg.Workers {
		workers.Go(func() { newWorker(w).run(work) })
	}
	for ctx.Err() == nil {
		err := w.take(ctx)
		w.bound.Store(false)
		if ctx.Err() != nil {
			break
		}
		w.fail(err)
		w.s.metrics.errors.WithLabelValues("consumer").Inc()
		w.s.cfg.Log.Warn("events cannot be read, trying again", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
	}
	close(w.jobs)
	workers.Wait()
	w.settling.Wait()
	w.acks.flush()
	stop()
	watching.Wait()
}

// take hands batches to the workers until ctx ends or the consumer fails.
func (w *walk) take(ctx context.Context) error {
	if _, err := stream.Await(ctx, w.s.cfg.Bus.JS, stream.Events); err != nil {
		return err
	}
	c, err := w.s.cfg.Bus.JS.CreateOrUpdateConsumer(ctx, stream.Events, jetstream.ConsumerConfig{
		Durable: stream.EventsConsumer, Description: "Detection, shared by all replicas of the rule-engine",
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: w.s.cfg.ackWait, DeliverPolicy: jetstream.DeliverAllPolicy,
		MaxAckPending: maxAckPending, MaxDeliver: -1,
	})
	if err != nil {
		return fmt.Errorf("consumer %s: %w", stream.EventsConsumer, err)
	}
	messages, err := c.Messages(jetstream.PullMaxMessagesWithBytesLimit(pullMessages, pullBytes))
	if err != nil {
		return fmt.Errorf("consumer %s: %w", stream.EventsConsumer, err)
	}
	defer w.giveBack(messages)
	w.fail(nil)
	w.bound.Store(true)
	polling, stop := context.WithCancel(ctx)
	var poll sync.WaitGroup
	poll.Go(func() { w.poll(polling, c) })
	defer poll.Wait()
	defer stop()
	for {
		if err := w.awaitTurn(ctx); err != nil {
			return nil
		}
		m, err := messages.Next(jetstream.NextContext(ctx))
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = m.Nak() // delivered again in any case
			}
			return nil
		case errors.Is(err, jetstream.ErrNoHeartbeat):
			w.s.cfg.Log.Debug("no heartbeat of the consumer", "consumer", stream.EventsConsumer)
			continue
		case err != nil:
			return fmt.Errorf("consumer %s: %w", stream.EventsConsumer, err)
		}
		w.hold(m)
		select {
		case w.jobs <- m:
		case <-ctx.Done():
			w.release(m)
			_ = m.Nak() // delivered again in any case
			return nil
		}
	}
}

// awaitTurn waits until it is known which alerts were raised: a view that has
// fallen behind could let an alert be raised twice.
func (w *walk) awaitTurn(ctx context.Context) error {
	for !w.s.raisedFold.Ready() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return ctx.Err()
}

// giveBack ends a subscription and lets other replicas have at once what this
// one has not begun.
func (w *walk) giveBack(messages jetstream.MessagesContext) {
	messages.Drain()
	for {
		m, err := messages.Next(jetstream.NextMaxWait(time.Second))
		if err != nil {
			messages.Stop()
			return
		}
		_ = m.Nak() // delivered again in any case
	}
}

// poll watches how much is waiting.
func (w *walk) poll(ctx context.Context, c jetstream.Consumer) {
	for {
		if info, err := c.Info(ctx); err == nil {
			w.s.metrics.pending.Set(float64(info.NumPending))
			w.s.metrics.unacked.Set(float64(info.NumAckPending))
			if info.NumPending == 0 {
				w.caughtUp.Store(true)
			}
		}
		wait := 5 * time.Second
		if !w.caughtUp.Load() {
			wait = 100 * time.Millisecond
		}
		if lifecycle.Sleep(ctx, beat.Next(wait)) != nil {
			return
		}
	}
}

func (w *walk) hold(m jetstream.Msg) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.inHand[m] = struct{}{}
}

func (w *walk) release(m jetstream.Msg) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.inHand, m)
}

// keepAlive tells the server that the batches in hand are still worked on.
func (w *walk) keepAlive(ctx context.Context) {
	for lifecycle.Sleep(ctx, beat.Next(w.s.cfg.ackWait/3)) == nil {
		w.mu.Lock()
		held := make([]jetstream.Msg, 0, len(w.inHand))
		for m := range w.inHand {
			held = append(held, m)
		}
		w.mu.Unlock()
		for _, m := range held {
			// A batch that was acknowledged meanwhile, or a lost connection:
			// nothing more to do here.
			_ = m.InProgress()
		}
	}
}
