package dispatch

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/store"
)

const subsystem = "command_dispatch"

type metrics struct {
	requests  *prometheus.CounterVec
	duration  *prometheus.HistogramVec
	errors    prometheus.Counter
	delivered prometheus.Counter
	expired   prometheus.Counter
	results   *prometheus.CounterVec
}

// newMetrics registers the service's metrics; s is asked for the gauges.
func newMetrics(reg prometheus.Registerer, s *Service) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: "nightjar", Subsystem: subsystem, Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	gauge := func(name, help string, f func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "nightjar", Subsystem: subsystem, Name: name, Help: help}, f))
	}
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "nightjar", Subsystem: subsystem,
			Name: "requests_total", Help: "Requests answered, by subject and by kind of error or ok."}, []string{"subject", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "nightjar", Subsystem: subsystem,
			Name: "request_duration_seconds", Help: "Time taken to answer a request.", Buckets: prometheus.ExponentialBuckets(0.0005, 3, 10)}, []string{"subject"}),
		results: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "nightjar", Subsystem: subsystem,
			Name: "results_total", Help: "Results received, by what became of them."}, []string{"outcome"}),
		errors:    counter("errors_total", "Failures of this service's own work."),
		delivered: counter("delivered_commands_total", "Commands handed out by this replica."),
		expired:   counter("expired_commands_total", "Commands that this replica ended because no result came in time."),
	}
	reg.MustRegister(m.requests, m.duration, m.results)
	for _, outcome := range []message.CommandOutcome{message.ResultAccepted, message.ResultForeign, message.ResultEarly, message.ResultRepeated, message.ResultLate} {
		m.results.WithLabelValues(string(outcome))
	}
	gauge("queued_commands", "Commands that wait for their endpoint to ask.", func() float64 { return float64(s.queued.Load()) })
	gauge("sent_commands", "Commands that were handed out and have no result yet.", func() float64 { return float64(s.sent.Load()) })
	store.RegisterMetrics(reg, subsystem, s.db)
	return m
}

// observe records a request. Subjects are the fixed ones the service answers
// on, so their number is bounded.
func (m *metrics) observe(subject string, took time.Duration, err error) {
	verb := subject[strings.LastIndexByte(subject, '.')+1:]
	code := "ok"
	if f := fault.From(err); f != nil {
		code = string(f.Kind)
		if f.Kind == fault.Internal {
			m.errors.Inc()
		}
	}
	m.requests.WithLabelValues(verb, code).Inc()
	m.duration.WithLabelValues(verb).Observe(took.Seconds())
}
