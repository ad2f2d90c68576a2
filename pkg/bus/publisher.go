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
	// maxTogether and maxTogetherBytes bound what is published at once. The
	// server takes up to 1000 messages in a batch.
	maxTogether      = 512
	maxTogetherBytes = 4 << 20
	// maxBatched is the largest message that is worth a place in a batch, in
	// which it is written twice.
	maxBatched = 64 << 10
	// The wait for the messages of those who were just answered is at most
	// this part of the time that their own messages took, and at most
	// gatherTime.
	gatherPart = 4
	gatherTime = 10 * time.Millisecond
	// atomicPause is how long no atomic batch is tried after one was refused.
	atomicPause = time.Second
)

// Publisher publishes messages to one stream and shares writes to stable storage
// among them: what comes while others are on their way goes together, as one
// atomic batch where there is enough of it. A message is acknowledged when it
// is on stable storage, as with the client's own publishing, and messages
// stand in the stream in the order in which they were handed over.
type Publisher struct {
	js      jetstream.JetStream
	timeout time.Duration

	mu      sync.Mutex
	queue   []*publication
	arrived chan struct{} // told of a message while the queue is gathered
	running bool

	// The rest belongs to the goroutine that publishes.
	noAtomicBefore time.Time
}

// publication is a message on its way, a [jetstream.PubAckFuture].
type publication struct {
	msg *nats.Msg
	ok  chan *jetstream.PubAck
	err chan error
}

// Ok is given the acknowledgement.
func (p *publication) Ok() <-chan *jetstream.PubAck { return p.ok }

// Err is given the error when there is no acknowledgement.
func (p *publication) Err() <-chan error { return p.err }

// Msg returns the message.
func (p *publication) Msg() *nats.Msg { return p.msg }

// NewPublisher returns a publisher for a connection. An acknowledgement that
// does not come within timeout is an error of its message, which may be stored
// all the same.
func NewPublisher(b *Bus, timeout time.Duration) (*Publisher, error) {
	js, err := jetstream.New(b.NC, jetstream.WithPublishAsyncTimeout(timeout), jetstream.WithPublishAsyncMaxPending(2*maxTogether))
	if err != nil {
		return nil, fmt.Errorf("jetstream: %w", err)
	}
	return &Publisher{js: js, timeout: timeout, arrived: make(chan struct{}, 1)}, nil
}

// PublishMsgAsync hands a message over, which must not be changed before its
// outcome is known. The error is [nats.ErrMaxPayload] for one that is too
// large; every other one is told by the future.
func (p *Publisher) PublishMsgAsync(m *nats.Msg) (jetstream.PubAckFuture, error) {
	if len(m.Data) > maxBatched && int64(m.Size()-len(m.Subject)-len(m.Reply)) > p.js.Conn().MaxPayload() {
		return nil, nats.ErrMaxPayload
	}
	if m.Header == nil {
		m.Header = nats.Header{}
	}
	pub := &publication{msg: m, ok: make(chan *jetstream.PubAck, 1), err: make(chan error, 1)}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queue = append(p.queue, pub)
	if !p.running {
		p.running = true
		go p.run()
	}
	select {
	case p.arrived <- struct{}{}:
	default:
	}
	return pub, nil
}

// run publishes until nothing is left.
func (p *Publisher) run() {
	last, took := 0, time.Duration(0)
	for {
		p.gather(last, min(took/gatherPart, gatherTime))
		group := p.take()
		if len(group) == 0 {
			return
		}
		began := time.Now()
		p.publish(group)
		last, took = len(group), time.Since(began)
	}
}

// gather waits a moment for more messages when so many are on their way that
// an atomic batch can be filled: the senders of the last group have just been
// answered and are about to send the next.
func (p *Publisher) gather(last int, patience time.Duration) {
	queued := p.queued()
	want := min(last+queued, maxTogether)
	if want < atomicMin || queued >= want {
		return
	}
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for p.queued() < want {
		select {
		case <-p.arrived:
		case <-limit.C:
			return
		}
	}
}

func (p *Publisher) queued() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.queue)
}

// take removes the next group from the queue. No two messages of a group have
// the same id, for which an atomic batch would be refused.
func (p *Publisher) take() []*publication {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, size := 0, 0
	ids := make(map[string]struct{}, min(len(p.queue), maxTogether))
	for ; n < min(len(p.queue), maxTogether); n++ {
		m := p.queue[n].msg
		id := m.Header.Get(nats.MsgIdHdr)
		_, twice := ids[id]
		if size += len(m.Data); n > 0 && (size > maxTogetherBytes || twice && id != "") {
			break
		}
		ids[id] = struct{}{}
	}
	if n == 0 {
		p.queue, p.running = nil, false
		return nil
	}
	group := p.queue[:n:n]
	p.queue = p.queue[n:]
	return group
}

// publish publishes a group and returns when the outcome of each message is
// known.
func (p *Publisher) publish(group []*publication) {
	if len(group) >= atomicMin && !time.Now().Before(p.noAtomicBefore) && allSmall(group) {
		if p.atomic(group) {
			return
		}
		p.noAtomicBefore = time.Now().Add(atomicPause)
	}
	futures := make([]jetstream.PubAckFuture, len(group))
	for i, pub := range group {
		var err error
		if futures[i], err = p.js.PublishMsgAsync(pub.msg); err != nil {
			pub.err <- err
		}
	}
	for i, f := range futures {
		if f == nil {
			continue
		}
		select {
		case ack := <-f.Ok():
			group[i].ok <- ack
		case err := <-f.Err():
			group[i].err <- err
		}
	}
}

func allSmall(group []*publication) bool {
	for _, pub := range group {
		if len(pub.msg.Data) > maxBatched {
			return false
		}
	}
	return true
}

// atomic publishes a group as one batch, stored as a whole or not at all. It
// returns false when the server has refused it, so that nothing of it is
// stored: for a message that is in the stream already, for a limit, or because
// the stream does not allow it.
func (p *Publisher) atomic(group []*publication) bool {
	ctx, cancel := context.WithTimeout(context.Background(), p.timeout)
	defer cancel()
	msgs := make([]*nats.Msg, len(group))
	for i, pub := range group {
		msgs[i] = pub.msg
	}
	ack, err := jetstreamext.PublishMsgBatch(ctx, p.js, msgs, jetstreamext.BatchFlowControl{AckTimeout: p.timeout})
	var refused *jetstream.APIError
	if errors.As(err, &refused) || errors.Is(err, nats.ErrNoResponders) {
		for _, m := range msgs {
			m.Reply = ""
			for _, h := range [...]string{jetstreamext.BatchIDHeader, jetstreamext.BatchSeqHeader, jetstreamext.BatchCommitHeader} {
				m.Header.Del(h)
			}
		}
		return false
	}
	for i, pub := range group {
		if err != nil {
			pub.err <- err
			continue
		}
		pub.ok <- &jetstream.PubAck{Stream: ack.Stream, Domain: ack.Domain, Sequence: ack.Sequence - uint64(len(group)-1-i)}
	}
	return true
}
