package ruleengine

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/store"
	"github.com/nightjar-edr/nightjar/pkg/view"
)

const subsystem = "rule_engine"

type metrics struct {
	views *view.Metrics

	requests        *prometheus.CounterVec
	requestDuration *prometheus.HistogramVec
	errors          *prometheus.CounterVec

	batches       prometheus.Counter
	events        prometheus.Counter
	filtered      prometheus.Counter
	alerts        *prometheus.CounterVec
	repeated      prometheus.Counter
	retries       prometheus.Counter
	removed       prometheus.Counter
	refused       prometheus.Counter
	unread        *prometheus.CounterVec
	deadLetters   *prometheus.CounterVec
	batchDuration prometheus.Histogram
	pending       prometheus.Gauge
	unacked       prometheus.Gauge
}

// newMetrics registers the metrics of a service whose rules and store are
// already there.
func newMetrics(reg prometheus.Registerer, s *Service) *metrics {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "nightjar", Subsystem: subsystem, Name: name, Help: help}
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts(opts(name, help)))
	}
	m := &metrics{
		views:    view.NewMetrics(reg, subsystem),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts(opts("requests_total", "Requests answered.")), []string{"subject", "code"}),
		requestDuration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "nightjar", Subsystem: subsystem,
			Name: "request_duration_seconds", Help: "Time to answer a request.", Buckets: prometheus.ExponentialBuckets(0.0005, 4, 9)}, []string{"subject"}),
		errors:   prometheus.NewCounterVec(prometheus.CounterOpts(opts("errors_total", "Failures of work that is tried again, by kind.")), []string{"kind"}),
		batches:  counter("batches_total", "Batches worked on and acknowledged."),
		events:   counter("events_total", "Events in the batches acknowledged."),
		filtered: counter("filtered_events_total", "Events in the batches acknowledged that a filter rule matched."),
		alerts:   prometheus.NewCounterVec(prometheus.CounterOpts(opts("alerts_total", "Alerts raised.")), []string{"severity", "origin"}),
		repeated: counter("repeated_total", "Events in the batches acknowledged whose alert had been raised before."),
		removed:  counter("removed_batches_total", "Batches passed over because what their endpoint had stored was removed."),
		retries:  counter("retries_total", "Batches handed back to be worked on again."),
		unread:   prometheus.NewCounterVec(prometheus.CounterOpts(opts("retention_unread_alerts_total", "Alerts removed because of their retention that a SIEM had not acknowledged.")), []string{"siem"}),
		refused:  counter("refused_alerts_total", "Alerts that the stream ALERTS refused, which are tried again."),
		deadLetters: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "nightjar", Name: "dead_letters_total",
			Help: "Dead letters written.", ConstLabels: prometheus.Labels{"service": access.Rules}}, []string{"reason"}),
		batchDuration: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "nightjar", Subsystem: subsystem,
			Name: "batch_duration_seconds", Help: "Time from taking a batch up to its acknowledgement.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16)}),
		pending: prometheus.NewGauge(prometheus.GaugeOpts(opts("consumer_pending", "Batches in EVENTS that no replica has taken up yet."))),
		unacked: prometheus.NewGauge(prometheus.GaugeOpts(opts("consumer_unacknowledged", "Batches in EVENTS that all replicas together have taken up and not acknowledged yet."))),
	}
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts(name, help)), f)
	}
	reg.MustRegister(m.requests, m.requestDuration, m.errors, m.batches, m.events, m.filtered, m.alerts, m.repeated,
		m.retries, m.removed, m.refused, m.unread, m.deadLetters, m.batchDuration, m.pending, m.unacked,
		gauge("rules", "Compiled rules, those that wait for a container included.", func() float64 { return float64(s.rules.current.Load().set.Count()) }),
		gauge("rules_waiting", "Rules that wait for a container.", func() float64 { return float64(len(s.rules.current.Load().set.Waiting())) }),
		gauge("rules_failed", "Rules of the set in force that panicked and are set aside.", func() float64 { return float64(s.rules.current.Load().failed.Load()) }),
		gauge("containers", "Containers that rules can refer to.", func() float64 { n, _ := s.containers.count(); return float64(n) }),
		gauge("container_lines", "Different lines of all containers.", func() float64 { _, n := s.containers.count(); return float64(n) }),
		gauge("set_revision", "Revision of the rule set in force.", func() float64 { return float64(s.rules.current.Load().revision) }),
	)
	for _, kind := range []string{"ack", "consumer", "containers", "panic"} {
		m.errors.WithLabelValues(kind)
	}
	for _, severity := range []subject.Severity{subject.Info, subject.Low, subject.Medium, subject.High, subject.Critical} {
		for _, origin := range []message.Origin{message.OriginAgent, message.OriginManager, message.OriginBoth} {
			m.alerts.WithLabelValues(string(severity), string(origin))
		}
	}
	for _, reason := range []string{message.ReasonNotJSON, message.ReasonNotObject, message.ReasonTooDeep, message.ReasonPoison} {
		m.deadLetters.WithLabelValues(reason)
	}
	store.RegisterMetrics(reg, subsystem, s.db)
	return m
}

// observe counts an answered request.
func (m *metrics) observe(on string, took time.Duration, err error) {
	code := "ok"
	if err != nil {
		code = string(fault.From(err).Kind)
	}
	m.requests.WithLabelValues(on, code).Inc()
	m.requestDuration.WithLabelValues(on).Observe(took.Seconds())
}
