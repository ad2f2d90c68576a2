package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
)

const (
	// atomicMin is the number of messages from which on an atomic batch costs
	// less than as many single messages: for each batch the server makes and
	// removes a store of its own, for each single message it syncs once.
	atomicMin = 20
	// maxTogether and maxTogetherBytes bound a batch. The server takes up to
	// 1000 messages in one.
	maxTogether      = 512
	maxTogetherBytes = 4 << 20
	// maxBatched is the largest message that is worth a place in a batch, in
	// which it is written twice.
	maxBatched = 8 << 10
	// maxSingles is how many messages are on their way one by one: enough to
	// keep the server busy while answers travel. What waits behind can share a
	// batch.
	maxSingles = 4
	// After a batch the publisher waits for the next messages of those who were
	// just answered, at most as long as the batch took, and at most holdTime.
	holdTime = 20 * time.Millisecond
	// Where messages come as fast as gatherMin within the time for which they may
	// be gathered, gatherAfter batches in a row, the next one waits for gatherMax
	// of them. A burst alone makes nobody wait.
	gatherMin   = 48
	gatherAfter = 3
	gatherMax   = 256
	// atomicPause is how long no atomic batch is tried after one was refused,
	// atomicOff after the stream was found to take none at all.
	atomicPause = time.Second
	atomicOff   = time.Minute
)

// Publisher publishes messages to one stream and shares writes to stable storage
// among them: where many wait for their turn they go together, as one atomic
// batch. A message is acknowledged when it is on stable storage, as with the
// client's own publishing. The order of messages is not kept.
type Publisher struct {
	js      jetstream.JetStream
	timeout time.Duration
	gather  time.Duration

	mu    sync.Mutex
	queue []*publication
	// singles is how many messages are on their way one by one, batching whether
	// a batch is.
	singles  int
	batching bool
	// Nothing is sent before holdUntil unless so many wait as holdFor says.
	holdUntil      time.Time
	holdFor        int
	noAtomicBefore time.Time
	// batched is when the last batch was settled, quick how many in a row came as
	// fast as it takes to gather.
	batched time.Time
	quick   int
}

// publication is a message on its way.
type publication struct {
	msg     *nats.Msg
	settled func(*jetstream.PubAck, error)
	// until is when it is too late to send the message.
	until time.Time
	// alone keeps the message out of batches.
	alone bool
}

// future is a [jetstream.PubAckFuture].
type future struct {
	msg *nats.Msg
	ok  chan *jetstream.PubAck
	err chan error
}

// Ok is given the acknowledgement.
func (f *future) Ok() <-chan *jetstream.PubAck { return f.ok }

// Err is given the error when there is no acknowledgement.
func (f *future) Err() <-chan error { return f.err }

// Msg returns the message.
func (f *future) Msg() *nats.Msg { return f.msg }

func (f *future) settle(ack *jetstream.PubAck, err error) {
	if err != nil {
		f.err <- err
		return
	}
	f.ok <- ack
}

// NewPublisher returns a publisher for a connection. A message that waits for
// timeout without being sent, or whose acknowledgement does not come within
// timeout, fails; in the second case it may be stored all the same.
//
// Gather is for senders that do not wait for an acknowledgement before they send
// again: while they send so much that it pays, a message waits up to gather for
// others. With 0 a message waits only for senders that were just answered.
func NewPublisher(b *Bus, timeout, gather time.Duration) (*Publisher, error) {
	js, err := jetstream.New(b.NC, jetstream.WithPublishAsyncTimeout(timeout), jetstream.WithPublishAsyncMaxPending(2*maxTogether))
	if err != nil {
		return nil, fmt.Errorf("jetstream: %w", err)
	}
	return &Publisher{js: js, timeout: timeout, gather: gather}, nil
}

// PublishMsgAsync hands a message over as Publish does. Its outcome is told by
// the future.
func (p *Publisher) PublishMsgAsync(m *nats.Msg) (jetstream.PubAckFuture, error) {
	f := &future{msg: m, ok: make(chan *jetstream.PubAck, 1), err: make(chan error, 1)}
	if err := p.Publish(m, f.settle); err != nil {
		return nil, err
	}
	return f, nil
}

// Publish hands a message over, which must not be changed before its outcome is
// known. The error is [nats.ErrMaxPayload] for one that is too large; every
// other outcome is told to settled, once, perhaps before Publish returns. settled
// must not wait for anything, nor use the publisher.
func (p *Publisher) Publish(m *nats.Msg, settled func(*jetstream.PubAck, error)) error {
	if len(m.Data) > maxBatched && int64(m.Size()-len(m.Subject)-len(m.Reply)) > p.js.Conn().MaxPayload() {
		return nats.ErrMaxPayload
	}
	if m.Header == nil {
		m.Header = nats.Header{}
	}
	pub := &publication{msg: m, settled: settled, until: time.Now().Add(p.timeout), alone: len(m.Data) > maxBatched}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queue = append(p.queue, pub)
	p.send()
	return nil
}

// send sends as much of the queue as may be on its way. While a batch is, the
// server works on nothing else, and what comes meanwhile can be the next one.
// p.mu is held.
func (p *Publisher) send() {
	now := time.Now()
	for len(p.queue) > 0 {
		if p.batching || now.Before(p.holdUntil) && len(p.queue) < p.holdFor {
			return
		}
		n := 0
		if !now.Before(p.noAtomicBefore) {
			n = p.together()
		}
		switch {
		case now.After(p.queue[0].until):
			p.queue[0].settled(nil, fmt.Errorf("not sent: %w", nats.ErrTimeout))
			p.queue = p.queue[1:]
		case n >= atomicMin:
			p.batching = true
			go p.batch(p.queue[:n:n])
			p.queue = p.queue[n:]
		case p.singles < maxSingles:
			p.single(p.queue[0])
			p.queue = p.queue[1:]
		default:
			return
		}
	}
	p.queue = nil
}

// together returns how many messages at the head of the queue can be one
// batch. No two of them have the same id, for which it would be refused.
func (p *Publisher) together() int {
	if len(p.queue) < atomicMin {
		return 0
	}
	ids := make(map[string]struct{}, min(len(p.queue), maxTogether))
	size := 0
	for n, pub := range p.queue[:min(len(p.queue), maxTogether)] {
		id := pub.msg.Header.Get(nats.MsgIdHdr)
		_, twice := ids[id]
		if size += len(pub.msg.Data); pub.alone || size > maxTogetherBytes || twice && id != "" {
			return n
		}
		ids[id] = struct{}{}
	}
	return min(len(p.queue), maxTogether)
}

// single publishes one message. p.mu is held.
func (p *Publisher) single(pub *publication) {
	f, err := p.js.PublishMsgAsync(pub.msg)
	if err != nil {
		pub.settled(nil, err)
		return
	}
	p.singles++
	go func() {
		select {
		case ack := <-f.Ok():
			pub.settled(ack, nil)
		case err := <-f.Err():
			pub.settled(nil, err)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.singles--
		p.send()
	}()
}

// batch publishes a group as one batch. When that is refused, its messages are
// to go alone.
func (p *Publisher) batch(group []*publication) {
	began := time.Now()
	refused := p.atomic(group)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.batching = false
	if refused == nil {
		p.hold(began, len(group))
	} else {
		for _, pub := range group {
			pub.alone = true
		}
		pause := atomicPause
		if errors.Is(refused, jetstreamext.ErrBatchPublishNotEnabled) {
			pause = atomicOff
		}
		p.noAtomicBefore = time.Now().Add(pause)
		p.queue = append(group, p.queue...)
	}
	p.send()
}

// hold has the next messages wait after a batch of sent messages that was begun at a
// time. p.mu is held.
func (p *Publisher) hold(began time.Time, sent int) {
	now := time.Now()
	wait := min(now.Sub(began), holdTime)
	p.holdFor = min(sent+len(p.queue), maxTogether)
	if now.Sub(p.batched) > time.Duration(sent)*p.gather/gatherMin {
		p.quick = 0
	} else if p.quick++; p.quick >= gatherAfter {
		p.holdFor, wait = gatherMax, p.gather
	}
	p.batched, p.holdUntil = now, now.Add(wait)
	time.AfterFunc(wait, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.send()
	})
}

// atomic publishes a group as one batch, stored as a whole or not at all. It
// returns an error when the server has refused it, so that nothing of it is
// stored: for a message that is in the stream already, for a limit, or because
// the stream does not allow it.
func (p *Publisher) atomic(group []*publication) error {
	ctx, cancel := context.WithTimeout(context.Background(), p.timeout)
	defer cancel()
	msgs := make([]*nats.Msg, len(group))
	for i, pub := range group {
		msgs[i] = pub.msg
	}
	ack, err := jetstreamext.PublishMsgBatch(ctx, p.js, msgs, jetstreamext.BatchFlowControl{AckTimeout: p.timeout})
	var api *jetstream.APIError
	if errors.As(err, &api) || errors.Is(err, nats.ErrNoResponders) {
		for _, m := range msgs {
			m.Reply = ""
			for _, h := range [...]string{jetstreamext.BatchIDHeader, jetstreamext.BatchSeqHeader, jetstreamext.BatchCommitHeader} {
				m.Header.Del(h)
			}
		}
		return err
	}
	for i, pub := range group {
		if err != nil {
			pub.settled(nil, err)
			continue
		}
		pub.settled(&jetstream.PubAck{Stream: ack.Stream, Domain: ack.Domain, Sequence: ack.Sequence - uint64(len(group)-1-i)}, nil)
	}
	return nil
}
