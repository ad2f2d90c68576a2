package forwarder

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"

	"github.com/nightjar-edr/nightjar/services/siem-forwarder/internal/alert"
	"github.com/nightjar-edr/nightjar/services/siem-forwarder/internal/target"
)

const (
	// fetchBytes bounds what is fetched at once; it holds the largest message
	// twice.
	fetchBytes = 2 * stream.MaxMessage
	// grace is how long an exchange in hand may take when the service stops.
	grace = 10 * time.Second
	// idle is how long a request for alerts waits, and the process for it when it
	// stops.
	idle = 2 * time.Second
)

var errStarting = errors.New("starting")

// Service is the SIEM forwarder. Make it with New and run it with Run.
type Service struct {
	cfg     Config
	target  target.Target
	refused target.Target
	metrics *metrics

	mu    sync.Mutex
	state error
}

// held is an alert in hand.
type held struct {
	msg      jetstream.Msg
	record   target.Record
	severity subject.Severity
	received time.Time
	// refused is why the target never takes it, err why it did not just now.
	refused *target.Refused
	err     error
}

// New checks cfg and opens the target. It connects neither to the target nor
// looks at the stream.
func New(cfg Config) (*Service, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("%w: %w", lifecycle.ErrUsage, err)
	}
	s := &Service{cfg: cfg, metrics: newMetrics(cfg.Metrics), state: errStarting}
	s.cfg.Target.Shortened = s.metrics.shortened.Inc
	var err error
	if s.target, err = target.Open(s.cfg.Target); err != nil {
		return nil, fmt.Errorf("%w: %w", lifecycle.ErrUsage, err)
	}
	return s, nil
}

// Ready returns nil when the service is connected and the target took what was
// last handed to it, otherwise the reason why not.
func (s *Service) Ready() error {
	if err := s.cfg.Bus.Ready(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

func (s *Service) setState(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = err
}

// Run forwards alerts until ctx ends. Then it finishes the exchange in hand,
// gives back the alerts that were not taken, and returns nil.
func (s *Service) Run(ctx context.Context) (err error) {
	defer func() {
		err = errors.Join(err, s.target.Close())
		if s.refused != nil {
			err = errors.Join(err, s.refused.Close())
		}
	}()
	pause := newBackoff()
	for ctx.Err() == nil {
		consumer, err := s.cfg.Bus.JS.Consumer(ctx, stream.Alerts, s.cfg.SIEM)
		if err == nil {
			err = s.follow(ctx, consumer, pause)
		}
		if err != nil && ctx.Err() == nil {
			err = fmt.Errorf("consumer %s of the stream %s: %w", s.cfg.SIEM, stream.Alerts, err)
			s.setState(err)
			s.cfg.Log.Warn("alerts cannot be fetched; trying again", "error", err)
			_ = lifecycle.Sleep(ctx, pause.next(0)) // the loop looks at ctx
		}
	}
	return nil
}

// follow forwards the alerts of a consumer until ctx ends or they cannot be
// fetched.
func (s *Service) follow(ctx context.Context, consumer jetstream.Consumer, pause *backoff) error {
	ackWait := consumer.CachedInfo().Config.AckWait
	s.setState(nil)
	for ctx.Err() == nil {
		batch, err := s.fetch(ctx, consumer)
		if err != nil {
			return err
		}
		pause.reset()
		s.forward(ctx, batch, ackWait)
	}
	return nil
}

// fetch waits for an alert, and for those that come while it lingers.
func (s *Service) fetch(ctx context.Context, consumer jetstream.Consumer) ([]*held, error) {
	list, err := s.take(consumer, 1, idle)
	if err != nil || len(list) == 0 {
		return list, err
	}
	end := time.Now().Add(s.cfg.Linger)
	for left := s.cfg.Linger; left > 0 && len(list) < s.cfg.Batch && ctx.Err() == nil; left = time.Until(end) {
		more, err := s.take(consumer, s.cfg.Batch-len(list), min(left, idle))
		if err != nil {
			s.cfg.Log.Debug("fetch", "error", err) // the next one meets it, too
			break
		}
		list = append(list, more...)
	}
	return list, nil
}

// take fetches at most n alerts that come within a time. The server says when the
// time is over, behind the last alert. Who stops listening before, also because
// the process stops, misses what is on its way, which comes again only when the
// consumer has waited for its acknowledgement.
func (s *Service) take(consumer jetstream.Consumer, n int, within time.Duration) ([]*held, error) {
	batch, err := consumer.Fetch(n, jetstream.FetchMaxWait(within), jetstream.FetchMaxBytes(fetchBytes))
	if err != nil {
		return nil, err
	}
	var list []*held
	for m := range batch.Messages() {
		list = append(list, s.read(m))
		if meta, err := m.Metadata(); err == nil {
			s.metrics.pending.Set(float64(meta.NumPending))
		}
	}
	if err := batch.Error(); err != nil && len(list) == 0 {
		return nil, err
	}
	return list, nil
}

// read makes the record of a message. One that cannot be read is refused.
func (s *Service) read(m jetstream.Msg) *held {
	h := &held{msg: m, record: target.Record{ID: m.Headers().Get(nats.MsgIdHdr)}}
	a, err := alert.Read(m.Headers(), m.Data())
	if err != nil {
		h.refused = &target.Refused{Reason: err.Error()}
		return h
	}
	f := s.cfg.Target.Format
	body, err := f.Encode(a, false)
	if err != nil {
		h.refused = &target.Refused{Reason: err.Error()}
		return h
	}
	h.severity, h.received = a.Severity, a.Received
	h.record = target.Record{
		ID: a.ID, Body: body, Short: func() ([]byte, error) { return f.Encode(a, true) },
		Time: a.Time, Host: a.Host(), IP: a.IP, Criticality: a.Criticality, Severity: string(a.Severity),
	}
	return h
}
