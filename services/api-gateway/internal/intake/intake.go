package intake

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/failpoint"
)

const (
	// maxBatch and maxLines are the size in bytes, before it is packed, and the
	// lines of the largest batch that is taken in together with others. A larger
	// one makes a message of EVENTS nearly full by itself.
	maxBatch = message.MaxBatchBytes / 2
	maxLines = message.MaxBatchEvents / 2
	// maxDirect is how many batches are on their way to EVENTS one by one. What
	// waits behind them goes together, if there are minTogether at least.
	maxDirect   = 4
	minTogether = 4
	// maxTogether and maxTogetherBytes bound what is written as one message.
	maxTogether      = 512
	maxTogetherBytes = 1 << 20
	// The wait for those who were just answered, who are about to send again, is
	// holdFactor times as long as the write took, at most holdTime.
	holdFactor = 4
	holdTime   = 4 * time.Millisecond
	// Where manyTogether endpoints or more send within manyTime, it is for as many
	// as do: those who send seldom are not about to send again, but others are.
	manyTogether = 8
	manyTime     = 20 * time.Millisecond
	// writeTimeout is how long the acknowledgement of a message may take.
	writeTimeout = 10 * time.Second
	// directAfter is how long everything goes one by one when something could
	// not be taken in, twice as long each time in a row, up to directMost.
	directAfter = time.Second
	directMost  = time.Minute
	// maxPending bounds, in bytes, what is acknowledged and not moved yet. Beyond
	// it everything goes one by one.
	maxPending = 32 << 20
)

// Config is what an Intake needs.
type Config struct {
	JS jetstream.JetStream
	// Gateway is a token that names this process and no other one.
	Gateway string
	// Alone tells that no other gateway is or comes on the same NATS.
	Alone bool
	// Publish hands a message of EVENTS over and tells its outcome once. An
	// outcome that is not nil may leave it stored all the same.
	Publish func(m *nats.Msg, settled func(*jetstream.PubAck, error)) error
	// Generation is that of an endpoint's last removal.
	Generation func(endpoint string) uint64
	Log        *slog.Logger
	Metrics    prometheus.Registerer
	// Namespace of the metrics is nightjar, Subsystem is the service's.
	Subsystem string
}

// Intake takes batches in. Make it with New; Run moves what it took in.
type Intake struct {
	cfg     Config
	metrics *metrics

	mu    sync.Mutex
	queue []waiting
	// direct is how many batches are on their way to EVENTS one by one, writing
	// tells whether a message is on its way to INTAKE.
	direct  int
	writing bool
	// Nothing is written before holdUntil unless holdFor batches wait.
	holdUntil time.Time
	holdFor   int
	// senders tell whether many endpoints send, each of them seldom.
	senders senders
	// Before directUntil everything goes one by one. failed is for how long
	// since the last write, 0 when that went well.
	directUntil time.Time
	failed      time.Duration

	pending
}

// waiting is a batch that is not on its way yet.
type waiting struct {
	batch   message.Joined
	settled func(error)
}

// New returns an Intake. The stream must be there before something is published.
func New(cfg Config) *Intake {
	q := &Intake{cfg: cfg, pending: newPending(), senders: newSenders(time.Now())}
	q.metrics = newMetrics(cfg.Metrics, cfg.Subsystem, q)
	return q
}

// Prepared is a batch that Publish takes.
type Prepared struct {
	batch message.Joined
	// msg, if not nil, goes straight to EVENTS; it counts as one of those that
	// others wait behind unless it is large.
	msg   *nats.Msg
	large bool
}

// Size returns how many bytes the batch takes until it is settled.
func (p *Prepared) Size() int {
	if p.msg != nil {
		return len(p.msg.Data)
	}
	return len(p.batch.Text)
}

// Prepare makes a batch ready for Publish, in memory of its own.
func (q *Intake) Prepare(b message.Joined) *Prepared {
	if b.TraceParent != "" || len(b.Text) > maxBatch || b.Count > maxLines {
		return &Prepared{msg: b.BatchMsg(b.Text, b.Count), large: true}
	}
	q.mu.Lock()
	now := time.Now()
	q.senders.add(b.Endpoint, now)
	straight := q.straight(now)
	q.mu.Unlock()
	if straight {
		return &Prepared{msg: b.BatchMsg(b.Text, b.Count)}
	}
	return &Prepared{batch: b.Keep()}
}

// Publish hands over a batch. The error is [nats.ErrMaxPayload] for one that is too
// large. Otherwise settled is told once, perhaps before Publish returns, that it
// is on stable storage, or why that is not certain. It must not wait for anything.
func (q *Intake) Publish(p *Prepared, settled func(error)) error {
	if p.large {
		return q.cfg.Publish(p.msg, func(_ *jetstream.PubAck, err error) { settled(err) })
	}
	if p.msg != nil {
		q.mu.Lock()
		q.direct++
		q.mu.Unlock()
		q.publish(p.msg, settled) // here, so that batches of one request keep their order
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.queue = append(q.queue, waiting{p.batch, settled})
	q.send()
	return nil
}

// straight tells whether a batch goes to EVENTS right away. q.mu is held.
func (q *Intake) straight(now time.Time) bool {
	return len(q.queue) == 0 && !q.writing && (!q.together(now) || q.direct < maxDirect && !now.Before(q.holdUntil))
}

// together tells whether batches may be taken in together. q.mu is held.
func (q *Intake) together(now time.Time) bool {
	return !now.Before(q.directUntil) && q.bytes < maxPending
}

// send sends as much of the queue as may be on its way. q.mu is held.
func (q *Intake) send() {
	now := time.Now()
	together := q.together(now)
	for len(q.queue) > 0 && !q.writing {
		switch {
		case !together:
			q.single()
		case now.Before(q.holdUntil) && len(q.queue) < q.holdFor:
			return
		case q.direct < maxDirect && len(q.queue) < minTogether:
			q.single()
		case len(q.queue) >= minTogether:
			n := q.head()
			q.writing = true
			go q.write(q.queue[:n:n])
			q.queue = q.queue[n:]
		default:
			return
		}
	}
	if len(q.queue) == 0 {
		q.queue = nil
	}
}

// head returns how much of the queue one message takes. q.mu is held.
func (q *Intake) head() int {
	size := 0
	for n := range q.queue[:min(len(q.queue), maxTogether)] {
		if size += len(q.queue[n].batch.Text); size > maxTogetherBytes {
			return n
		}
	}
	return min(len(q.queue), maxTogether)
}

// single publishes the first of the queue to EVENTS. q.mu is held.
func (q *Intake) single() {
	w := q.queue[0]
	q.queue = q.queue[1:]
	q.direct++
	go func() {
		m, err := message.Join([]message.Joined{w.batch})
		if err != nil {
			q.settleDirect(w.settled, err)
			return
		}
		q.publish(m, w.settled)
	}()
}

// publish publishes a batch to EVENTS, which counts as one of q.direct.
func (q *Intake) publish(m *nats.Msg, settled func(error)) {
	if err := q.cfg.Publish(m, func(_ *jetstream.PubAck, err error) { q.settleDirect(settled, err) }); err != nil {
		q.settleDirect(settled, err)
	}
}

// settleDirect tells what became of one of q.direct.
func (q *Intake) settleDirect(settled func(error), err error) {
	settled(err)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.direct--
	q.send()
}

// write stores batches as one message of INTAKE. When that is refused they go to
// EVENTS one by one; when nobody knows, those who wait are told so.
func (q *Intake) write(group []waiting) {
	began := time.Now()
	batches := make([]message.Joined, len(group))
	for i := range group {
		batches[i] = group[i].batch
	}
	failpoint.Hit(failpoint.IntakeBeforeWrite)
	ctx, cancel := context.WithTimeout(context.Background(), writeTimeout)
	defer cancel()
	ack, err := q.cfg.JS.PublishMsg(ctx, message.IntakeMsg(q.cfg.Gateway, batches))
	refused := err != nil && !errors.Is(err, context.DeadlineExceeded)
	if err == nil {
		failpoint.Hit(failpoint.IntakeAfterWrite)
		q.metrics.messages.Inc()
		q.metrics.batches.Add(float64(len(batches)))
		// Before anybody is told, for who is told may stop the process.
		q.mu.Lock()
		q.add(ack.Sequence, batches, false)
		q.mu.Unlock()
	} else {
		q.warn(context.Background(), "batches cannot be taken in together, the next go one by one", err)
		err = fmt.Errorf("take in %d batches: %w", len(batches), err)
	}
	if !refused {
		for i := range group {
			group[i].settled(err)
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.writing = false
	if err == nil {
		q.failed = 0
		q.hold(time.Since(began), len(group))
	} else {
		q.failed = min(max(2*q.failed, directAfter), directMost)
		q.directUntil = time.Now().Add(q.failed)
		q.unsure = true
		if refused {
			q.queue = append(group, q.queue...)
		}
	}
	q.send()
}

// hold has the next message wait for those whose batches were just answered, sent
// of them, but not much longer than writing takes, or for as many of many
// endpoints. q.mu is held.
func (q *Intake) hold(took time.Duration, sent int) {
	n, wait := sent+len(q.queue), min(holdFactor*took, holdTime)
	if many := q.senders.within(manyTime); many >= manyTogether {
		n, wait = max(n, many), manyTime
	}
	q.holdFor, q.holdUntil = min(n, maxTogether), time.Now().Add(wait)
	time.AfterFunc(wait, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.send()
	})
}
