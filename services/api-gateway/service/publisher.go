package gateway

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/semaphore"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/services/api-gateway/internal/intake"
)

const (
	// flightWindow is how many messages of one request may wait for their
	// acknowledgement.
	flightWindow = 8
	// ackTimeout is how long an acknowledgement may take.
	ackTimeout = 10 * time.Second
	// messageOverhead is what a message costs beside its data.
	messageOverhead = 1 << 10
)

// errNotStored means that a message was not acknowledged: nobody can say
// whether it is stored.
var errNotStored = errors.New("not acknowledged by the stream")

// publisher hands messages to JetStream and follows their acknowledgements.
// It bounds the bytes of all messages that are not acknowledged yet.
type publisher struct {
	js      jetstream.JetStream
	events  *bus.Publisher
	intake  *intake.Intake
	unacked *semaphore.Weighted
	limit   int64
	pending sync.WaitGroup
}

// newPublisher makes a publisher for a connection. Every acknowledgement has a
// timeout, so none is waited for in vain.
func newPublisher(cfg *Config, generation func(endpoint string) uint64) (*publisher, error) {
	b := cfg.Bus
	js, err := jetstream.New(b.NC, jetstream.WithPublishAsyncTimeout(ackTimeout), jetstream.WithPublishAsyncMaxPending(1<<16))
	if err != nil {
		return nil, fmt.Errorf("jetstream: %w", err)
	}
	events, err := bus.NewPublisher(b, ackTimeout, 0)
	if err != nil {
		return nil, err
	}
	in := intake.New(intake.Config{
		JS: b.JS, Gateway: rand.Text(), Alone: cfg.Alone, Publish: events.Publish, Generation: generation,
		Log: cfg.Log, Metrics: cfg.Metrics, Subsystem: subsystem,
	})
	return &publisher{js: js, events: events, intake: in, unacked: semaphore.NewWeighted(cfg.Unacked), limit: cfg.Unacked}, nil
}

// wait returns when no acknowledgement is outstanding any more, or ctx ends.
func (p *publisher) wait(ctx context.Context) {
	done := make(chan struct{})
	go func() { p.pending.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// flight is the messages of one request. Its methods are for one goroutine.
type flight struct {
	p *publisher

	mu          sync.Mutex
	outstanding int
	err         error
	// settled is told that outstanding or err has changed.
	settled chan struct{}
}

// flight begins a request.
func (p *publisher) flight() *flight { return &flight{p: p, settled: make(chan struct{}, 1)} }

// outcome notes what became of a message.
func (f *flight) outcome(err error) {
	f.mu.Lock()
	f.outstanding--
	if err != nil && f.err == nil {
		f.err = fmt.Errorf("%w: %w", errNotStored, err)
	}
	f.mu.Unlock()
	select {
	case f.settled <- struct{}{}:
	default:
	}
}

// below returns nil once fewer than n messages are outstanding, or why a message
// of the flight has failed.
func (f *flight) below(ctx context.Context, n int) error {
	for {
		f.mu.Lock()
		outstanding, err := f.outstanding, f.err
		f.mu.Unlock()
		if err != nil || outstanding < n {
			return err
		}
		select {
		case <-f.settled:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// wait returns nil when every message of the flight is acknowledged.
func (f *flight) wait(ctx context.Context) error { return f.below(ctx, 1) }

// batch publishes a batch of events, which may be changed when it returns. It
// shares writes to stable storage with those of other requests, unless it is traced
// or large.
func (f *flight) batch(ctx context.Context, b message.Joined, settled func(error)) error {
	ready := f.p.intake.Prepare(b)
	return f.publish(ctx, ready.Size(), settled, func(settled func(error)) error {
		return f.p.intake.Publish(ready, settled)
	})
}

// letter publishes a dead letter.
func (f *flight) letter(ctx context.Context, m *nats.Msg, settled func(error)) error {
	return f.publish(ctx, len(m.Data), settled, func(settled func(error)) error {
		return f.p.letter(m, func(_ *jetstream.PubAck, err error) { settled(err) })
	})
}

func (p *publisher) letter(m *nats.Msg, settled func(*jetstream.PubAck, error)) error {
	future, err := p.js.PublishMsgAsync(m)
	if err != nil {
		return err
	}
	go func() {
		select {
		case ack := <-future.Ok():
			settled(ack, nil)
		case err := <-future.Err():
			settled(nil, err)
		}
	}()
	return nil
}

// publish hands size bytes over by start, without waiting for the acknowledgement.
// settled is told of it, with nil, or of its failure, unless publish itself
// returns an error. It waits while too many are outstanding. Once a
// message of the flight has failed it returns why.
func (f *flight) publish(ctx context.Context, size int, settled func(error), start func(settled func(error)) error) error {
	if err := f.below(ctx, flightWindow); err != nil {
		return err
	}
	taken := min(int64(size)+messageOverhead, f.p.limit)
	if err := f.p.unacked.Acquire(ctx, taken); err != nil {
		return err
	}
	f.mu.Lock()
	f.outstanding++
	f.mu.Unlock()
	f.p.pending.Add(1)
	done := func(err error) {
		f.p.unacked.Release(taken)
		f.outcome(err)
		f.p.pending.Done()
	}
	err := start(func(err error) {
		settled(err)
		done(err)
	})
	if err != nil {
		done(err)
		return f.below(ctx, 1)
	}
	return nil
}
