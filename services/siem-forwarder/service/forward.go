package forwarder

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/tracing"
	"github.com/nightjar-edr/nightjar/services/siem-forwarder/internal/target"
)

// forward hands a batch over, again and again, until each of its alerts is
// taken or in the file of refused alerts. When ctx ends, what is left is given
// back.
func (s *Service) forward(ctx context.Context, batch []*held, ackWait time.Duration) {
	inHand := s.choose(batch)
	pause := newBackoff()
	// For all attempts: what is begun anew with each would tell nothing while
	// they follow each other faster than it tells.
	stop := keep(inHand, ackWait)
	for len(inHand) > 0 && ctx.Err() == nil {
		s.metrics.inHand.Set(float64(len(inHand)))
		left, after := s.attempt(ctx, inHand)
		if inHand = left; len(inHand) > 0 {
			err := inHand[0].err
			s.metrics.failures.Inc()
			s.setState(fmt.Errorf("the target does not take alerts: %w", err))
			wait := pause.next(after)
			s.cfg.Log.Warn("the target does not take alerts; trying again", "alerts", len(inHand), "in", wait, "error", err)
			_ = lifecycle.Sleep(ctx, wait) // the loop looks at ctx
		}
	}
	stop()
	s.metrics.inHand.Set(0)
	if len(inHand) == 0 {
		s.setState(nil)
	}
	for _, h := range inHand {
		_ = h.msg.Nak() // what is not given back comes again by itself
	}
}

// choose acknowledges what is not to be forwarded and returns the rest.
func (s *Service) choose(batch []*held) []*held {
	list := make([]*held, 0, len(batch))
	for _, h := range batch {
		if h.refused == nil && !s.cfg.wanted(h.severity) {
			s.metrics.filtered.Inc()
			s.acknowledge(h)
			continue
		}
		list = append(list, h)
	}
	return list
}

// attempt hands alerts over once, acknowledges those that are taken or set
// aside, and returns the others in their order, with how long the target asked
// to wait.
func (s *Service) attempt(ctx context.Context, inHand []*held) (left []*held, after time.Duration) {
	// An exchange that has begun is finished, within bounds.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(grace, cancel) })()
	span := s.cfg.Bus.Trace.Join(work, len(inHand), func(i int) string { return inHand[i].msg.Headers().Get(tracing.Header) }, "hand over")
	span.Count("messaging.batch.message_count", len(inHand))
	s.send(work, inHand)
	for _, h := range inHand {
		if h.err != nil {
			span.Fail()
		}
	}
	span.End(nil)
	aside := s.refuse(work, inHand)
	if aside != nil {
		s.cfg.Log.Error("refused alerts cannot be set aside", "error", aside)
	}
	for _, h := range inHand {
		var later *target.Later
		switch {
		case h.refused != nil && aside == nil:
			s.acknowledge(h)
		case h.refused != nil:
			h.err = aside
			left = append(left, h)
		case h.err == nil:
			s.metrics.forwarded.WithLabelValues(string(h.severity)).Inc()
			s.metrics.lag.Set(time.Since(h.received).Seconds())
			s.acknowledge(h)
		default:
			if errors.As(h.err, &later) {
				after = max(after, later.After)
			}
			left = append(left, h)
		}
	}
	return left, after
}

// send hands over what is not refused and notes the results.
func (s *Service) send(ctx context.Context, inHand []*held) {
	var sent []*held
	var records []target.Record
	for _, h := range inHand {
		if h.refused == nil {
			sent, records = append(sent, h), append(records, h.record)
		}
	}
	if len(sent) == 0 {
		return
	}
	begun := time.Now()
	for i, err := range s.target.Send(ctx, records) {
		sent[i].err = err
		if s.cfg.Refused == RefusedFile {
			errors.As(err, &sent[i].refused)
		}
	}
	s.metrics.duration.Observe(time.Since(begun).Seconds())
}

// acknowledge ends an alert. An acknowledgement that gets lost makes it come
// again, with the same id.
func (s *Service) acknowledge(h *held) {
	if err := h.msg.Ack(); err != nil {
		s.cfg.Log.Warn("an alert is not acknowledged and comes again", "id", h.record.ID, "error", err)
	}
}

// keep tells the server, until stop is called, that those of the alerts that are
// not acknowledged are in hand, so that they are not delivered anew.
func keep(list []*held, ackWait time.Duration) (stop func()) {
	every := ackWait / 3
	if every <= 0 {
		every = 10 * time.Second
	}
	ticker, end, ended := time.NewTicker(every), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		defer ticker.Stop()
		for {
			select {
			case <-end:
				return
			case <-ticker.C:
			}
			for _, h := range list {
				_ = h.msg.InProgress() // one that is lost makes the alert come again; once acknowledged, none is sent
			}
		}
	}()
	return sync.OnceFunc(func() { close(end); <-ended })
}

// Bounds of the time between attempts.
const (
	firstWait = 500 * time.Millisecond
	lastWait  = time.Minute
)

// backoff doubles the time between attempts up to lastWait. Each is shortened
// by up to a half at random, so that forwarders do not come together.
type backoff struct{ last time.Duration }

func newBackoff() *backoff { return &backoff{} }

func (b *backoff) reset() { b.last = 0 }

// next returns how long to wait, at least what the target asked for.
func (b *backoff) next(atLeast time.Duration) time.Duration {
	b.last = min(max(2*b.last, firstWait), lastWait)
	return max(atLeast, b.last-rand.N(b.last/2))
}
