package ruleengine

import (
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/beat"
	"github.com/nightjar-edr/nightjar/pkg/failpoint"
)

const (
	// ackEvery is how often batches are acknowledged that come seldom: the server
	// has what it delivered and what was acknowledged on stable storage, in a new
	// file for each change, a tenth of a second apart where several come.
	ackEvery = 5 * time.Second
	// maxUnacked is how many finished batches wait to be acknowledged. Each is in
	// memory, and comes again when the process is killed.
	maxUnacked = 8
)

// acks acknowledges finished batches: one at once when none was for some time, and
// those that follow together. Until then they count as delivered, and come again
// when the process is killed; all their alerts are known then.
type acks struct {
	w     *walk
	every time.Duration

	mu      sync.Mutex
	waiting []jetstream.Msg
	// sent is when batches were acknowledged last.
	sent time.Time
	// due sends what waits, nil while nothing does.
	due *time.Timer
}

// add takes a batch that is finished.
func (a *acks) add(m jetstream.Msg) {
	a.mu.Lock()
	a.waiting = append(a.waiting, m)
	now := len(a.waiting) >= maxUnacked || time.Since(a.sent) >= a.every
	if !now && a.due == nil {
		a.due = time.AfterFunc(beat.Next(a.every), a.flush)
	}
	a.mu.Unlock()
	if now {
		a.flush()
	}
}

// flush acknowledges all that wait.
func (a *acks) flush() {
	a.mu.Lock()
	waiting := a.waiting
	a.waiting, a.sent = nil, time.Now()
	if a.due != nil {
		a.due.Stop()
		a.due = nil
	}
	a.mu.Unlock()
	for _, m := range waiting {
		a.w.ack(m)
	}
}

// ack acknowledges a batch and tells whether that was handed to the connection.
// One of which the server does not hear comes again, and then all its alerts are
// known.
func (w *walk) ack(m jetstream.Msg) bool {
	if err := m.Ack(); err != nil {
		w.s.metrics.errors.WithLabelValues("ack").Inc()
		w.s.cfg.Log.Warn("batch not acknowledged", "subject", m.Subject(), "error", err)
		return false
	}
	failpoint.Hit(failpoint.BatchAfterAck)
	return true
}
