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
	// MaxBatch is the size in bytes of the largest batch that is taken in
	// together with others.
	MaxBatch = 8 << 10
	// maxDirect is how many batches are on their way to EVENTS one by one. What
	// waits behind them goes together, if there are minTogether at least.
	maxDirect   = 4
	minTogether = 4
	// maxTogether and maxTogetherBytes bound what is written as one message.
	maxTogether      = 512
	maxTogetherBytes = 1 << 20
	// holdTime bounds the wait for those who were just answered: they are about
	// to send again.
	holdTime = 4 * time.Millisecond
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
	q := &Intake{cfg: cfg, pending: newPending()}
	q.metrics = newMetrics(cfg.Metrics, cfg.Subsystem, q)
	return q
}

// Publish hands over a batch of MaxBatch bytes at most, which must not be changed
// afterwards. Settled is told once, perhaps before Publish returns, that it is on
// stable storage, or why that is not certain. It must not wait for anything.
func (q *Intake) Publish(batch message.Joined, settled func(error)) {
	w := waiting{batch, settled}
	q.mu.Lock()
	if now := time.Now(); len(q.queue) == 0 && !q.writing && (!q.together(now) || q.direct < maxDirect && !now.Before(q.holdUntil)) {
		q.direct++
		q.mu.Unlock()
		q.publish(w) // here, so that batches of one request keep their order
		return
	}
	defer q.mu.Unlock()
	q.queue = append(q.queue, w)
	q.send()
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
	go q.publish(w)
}

// publish publishes a batch to EVENTS, which counts as one of q.direct.
func (q *Intake) publish(w waiting) {
	settled := func(_ *jetstream.PubAck, err error) {
		w.settled(err)
		q.mu.Lock()
		defer q.mu.Unlock()
		q.direct--
		q.send()
	}
	if err := q.cfg.Publish(w.batch.BatchMsg(w.batch.Text, w.batch.Count), settled); err != nil {
		settled(nil, err)
	}
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
// of them, unless the one before took longer than it is worth. q.mu is held.
func (q *Intake) hold(took time.Duration, sent int) {
	wait := min(took, holdTime)
	q.holdFor, q.holdUntil = min(sent+len(q.queue), maxTogether), time.Now().Add(wait)
	time.AfterFunc(wait, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.send()
	})
}
