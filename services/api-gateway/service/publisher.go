package gateway

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/semaphore"

	"github.com/nightjar-edr/nightjar/pkg/bus"
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
	unacked *semaphore.Weighted
	limit   int64
	pending sync.WaitGroup
}

// newPublisher makes a publisher for a connection. Every acknowledgement has a
// timeout, so none is waited for in vain.
func newPublisher(b *bus.Bus, unacked int64) (*publisher, error) {
	js, err := jetstream.New(b.NC, jetstream.WithPublishAsyncTimeout(ackTimeout), jetstream.WithPublishAsyncMaxPending(1<<16))
	if err != nil {
		return nil, fmt.Errorf("jetstream: %w", err)
	}
	events, err := bus.NewPublisher(b, ackTimeout, 0)
	if err != nil {
		return nil, err
	}
	return &publisher{js: js, events: events, unacked: semaphore.NewWeighted(unacked), limit: unacked}, nil
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

// asynchronous is what hands a message to a stream and tells its outcome, unless
// it returns an error.
type asynchronous func(m *nats.Msg, settled func(*jetstream.PubAck, error)) error

// batch publishes a batch of events. Requests share writes to stable storage.
func (f *flight) batch(ctx context.Context, m *nats.Msg, settled func(error)) error {
	return f.publish(ctx, f.p.events.Publish, m, settled)
}

// letter publishes a dead letter.
func (f *flight) letter(ctx context.Context, m *nats.Msg, settled func(error)) error {
	return f.publish(ctx, f.p.letter, m, settled)
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

// publish hands a message over without waiting for its acknowledgement.
// settled is told of it, with nil, or of its failure, unless publish itself
// returns an error. It waits while too many are outstanding. Once a
// message of the flight has failed it returns why.
func (f *flight) publish(ctx context.Context, async asynchronous, m *nats.Msg, settled func(error)) error {
	if err := f.below(ctx, flightWindow); err != nil {
		return err
	}
	size := min(int64(len(m.Data))+messageOverhead, f.p.limit)
	if err := f.p.unacked.Acquire(ctx, size); err != nil {
		return err
	}
	f.mu.Lock()
	f.outstanding++
	f.mu.Unlock()
	f.p.pending.Add(1)
	done := func(err error) {
		f.p.unacked.Release(size)
		f.outcome(err)
		f.p.pending.Done()
	}
	err := async(m, func(_ *jetstream.PubAck, err error) {
		settled(err)
		done(err)
	})
	if err != nil {
		done(err)
		return f.below(ctx, 1)
	}
	return nil
}
