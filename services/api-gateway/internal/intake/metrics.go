package intake

import "github.com/prometheus/client_golang/prometheus"

// metrics are those of the intake.
type metrics struct {
	messages, batches, failures, unreadable prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, subsystem string, q *Intake) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "nightjar", Subsystem: subsystem, Name: name, Help: help})
	}
	m := &metrics{
		messages:   counter("intake_messages_total", "Messages written to the stream INTAKE, each of them several batches."),
		batches:    counter("intake_batches_total", "Batches that were stored in the stream INTAKE first."),
		failures:   counter("intake_failures_total", "Times that batches could not be written to the stream INTAKE, moved to EVENTS or deleted, or that what was left behind could not be looked for; each is tried again."),
		unreadable: counter("intake_unreadable_messages_total", "Times that a message of the stream INTAKE could not be read; it stays there."),
	}
	reg.MustRegister(m.messages, m.batches, m.failures, m.unreadable,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "nightjar", Subsystem: subsystem, Name: "intake_pending_bytes",
			Help: "Bytes of batches that are acknowledged, stand in the stream INTAKE and are not moved to EVENTS yet."}, func() float64 {
			q.mu.Lock()
			defer q.mu.Unlock()
			return float64(q.bytes)
		}))
	return m
}
