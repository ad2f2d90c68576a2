package scorer

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/store"
)

const subsystem = "report_scorer"

type metrics struct {
	requests *prometheus.CounterVec
	failures *prometheus.CounterVec
	duration *prometheus.HistogramVec

	folded, malformed, uncounted, cleared, rebuilt, removed prometheus.Counter

	census prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer, db *store.DB) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: "nightjar", Subsystem: subsystem, Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "nightjar", Subsystem: subsystem,
			Name: "requests_total", Help: "Requests answered, by subject and code: ok or the kind of the error."}, []string{"subject", "code"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "nightjar", Subsystem: subsystem,
			Name: "errors_total", Help: "Requests that failed for a reason on the manager's side."}, []string{"subject"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "nightjar", Subsystem: subsystem,
			Name: "request_duration_seconds", Help: "Time taken to answer a request.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 4, 8)}, []string{"subject"}),
		folded:    counter("alerts_folded_total", "Alerts folded, those that a clear leaves out included."),
		malformed: counter("malformed_messages_total", "Alerts and records that could not be read and were passed over."),
		uncounted: counter("uncounted_signatures_total", "Names of signatures that reports leave out because of their number or length."),
		cleared:   counter("cleared_reports_total", "Reports cleared by this replica."),
		removed:   counter("removed_alerts_total", "Alerts passed over because what their endpoint had stored was removed."),
		rebuilt:   counter("rebuilt_statistics_total", "Statistics taken from the stream again because a clear came behind alerts already folded."),
		census: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "nightjar", Subsystem: subsystem,
			Name: "census_signatures", Help: "Different names of signatures over all endpoints."}),
	}
	reg.MustRegister(m.requests, m.failures, m.duration, m.census)
	store.RegisterMetrics(reg, subsystem, db)
	return m
}

// observe notes an answered request. Subjects are those that the service
// announced, so their number is bounded.
func (m *metrics) observe(subject string, took time.Duration, err error) {
	code := "ok"
	if f := fault.From(err); f != nil {
		code = string(f.Kind)
		if f.Kind == fault.Internal || f.Kind == fault.Unavailable {
			m.failures.WithLabelValues(subject).Inc()
		}
	}
	m.requests.WithLabelValues(subject, code).Inc()
	m.duration.WithLabelValues(subject).Observe(took.Seconds())
}
