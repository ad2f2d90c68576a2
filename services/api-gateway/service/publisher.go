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
	events, err := bus.NewPublisher(b, ackTimeout)
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
	p      *publisher
	window chan struct{}
	acks   sync.WaitGroup
	failed chan struct{}
	once   sync.Once
	err    error
}

// flight begins a request.
func (p *publisher) flight() *flight {
	return &flight{p: p, window: make(chan struct{}, flightWindow), failed: make(chan struct{})}
}

func (f *flight) fail(err error) {
	f.once.Do(func() {
		f.err = fmt.Errorf("%w: %w", errNotStored, err)
		close(f.failed)
	})
}

// asynchronous is what hands a message to a stream.
type asynchronous func(m *nats.Msg) (jetstream.PubAckFuture, error)

// batch publishes a batch of events. Requests share writes to stable storage.
func (f *flight) batch(ctx context.Context, m *nats.Msg, settled func(error)) error {
	return f.publish(ctx, f.p.events.PublishMsgAsync, m, settled)
}

// letter publishes a dead letter.
func (f *flight) letter(ctx context.Context, m *nats.Msg, settled func(error)) error {
	async := func(m *nats.Msg) (jetstream.PubAckFuture, error) { return f.p.js.PublishMsgAsync(m) }
	return f.publish(ctx, async, m, settled)
}

// publish hands a message over without waiting for its acknowledgement.
// settled is told of it, with nil, or of its failure, unless publish itself
// returns an error. It waits while too many are outstanding. Once a
// message of the flight has failed it returns why.
func (f *flight) publish(ctx context.Context, async asynchronous, m *nats.Msg, settled func(error)) error {
	select {
	case f.window <- struct{}{}:
	case <-f.failed:
		return f.err
	case <-ctx.Done():
		return ctx.Err()
	}
	size := min(int64(len(m.Data))+messageOverhead, f.p.limit)
	if err := f.p.unacked.Acquire(ctx, size); err != nil {
		return err
	}
	future, err := async(m)
	if err != nil {
		f.p.unacked.Release(size)
		f.fail(err)
		return f.err
	}
	f.acks.Add(1)
	f.p.pending.Add(1)
	go func() {
		defer f.p.pending.Done()
		defer f.acks.Done()
		select {
		case <-future.Ok():
			settled(nil)
		case err := <-future.Err():
			settled(err)
			f.fail(err)
		}
		f.p.unacked.Release(size)
		<-f.window
	}()
	return nil
}

// wait returns nil when every message of the flight is acknowledged.
func (f *flight) wait(ctx context.Context) error {
	done := make(chan struct{})
	go func() { f.acks.Wait(); close(done) }()
	select {
	case <-done:
	case <-f.failed:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-f.failed:
		return f.err
	default:
		return nil
	}
}
