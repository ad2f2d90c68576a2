package canary

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Steps of a round, in their order. The first that fails of the event's or of
// the command's ends that half of the round.
const (
	stepEndpoint = "endpoint" // the canary's endpoint is known
	stepRule     = "rule"     // its rule is there
	stepListen   = "listen"   // NATS is asked for the endpoint's alerts
	stepEvent    = "event"    // the event is acknowledged
	stepAlert    = "alert"    // the alert comes on its subject
	stepQuery    = "query"    // the admin API shows the alert
	stepScore    = "score"    // the report has counted it
	stepCommand  = "command"  // a command is queued
	stepFetch    = "fetch"    // the endpoint is given the command
	stepAnswer   = "answer"   // the endpoint's result is taken
	stepResult   = "result"   // the admin API shows the result
)

var steps = []string{stepEndpoint, stepRule, stepListen, stepEvent, stepAlert, stepQuery, stepScore, stepCommand, stepFetch, stepAnswer, stepResult}

// Reasons of a failure.
const (
	reasonTimeout     = "timeout"     // it did not come about in time
	reasonUnreachable = "unreachable" // there was no answer
	reasonRefused     = "refused"     // the answer was no
	reasonWrong       = "wrong"       // something else came than was to come
	reasonLocal       = "local"       // the canary's own file could not be used
)

var reasons = []string{reasonTimeout, reasonUnreachable, reasonRefused, reasonWrong, reasonLocal}

type metrics struct {
	rounds, failures *prometheus.CounterVec
	duration         *prometheus.HistogramVec
	success          *prometheus.GaugeVec
	roundSuccess     prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	const namespace, subsystem = "nightjar", "canary"
	m := &metrics{
		rounds: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem, Name: "rounds_total",
			Help: "Rounds that have ended, by result: success or failure."}, []string{"result"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem, Name: "step_failures_total",
			Help: "Steps that have failed, by step and reason."}, []string{"step", "reason"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: namespace, Subsystem: subsystem, Name: "step_duration_seconds",
			Help: "Time until a step had succeeded.", Buckets: prometheus.ExponentialBuckets(0.002, 2.5, 11)}, []string{"step"}),
		success: prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Subsystem: subsystem, Name: "step_last_success_timestamp_seconds",
			Help: "When a step last succeeded, in seconds since 1970; 0 when it never has."}, []string{"step"}),
		roundSuccess: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Subsystem: subsystem, Name: "last_success_timestamp_seconds",
			Help: "When a whole round last succeeded, in seconds since 1970; 0 when none has."}),
	}
	reg.MustRegister(m.rounds, m.failures, m.duration, m.success, m.roundSuccess)
	for _, result := range []string{resultSuccess, resultFailure} {
		m.rounds.WithLabelValues(result)
	}
	for _, step := range steps {
		m.duration.WithLabelValues(step)
		m.success.WithLabelValues(step)
		for _, reason := range reasons {
			m.failures.WithLabelValues(step, reason)
		}
	}
	return m
}

// Results of a round.
const (
	resultSuccess = "success"
	resultFailure = "failure"
)

// succeeded records a step that took a time.
func (m *metrics) succeeded(step string, took time.Duration) {
	m.duration.WithLabelValues(step).Observe(took.Seconds())
	m.success.WithLabelValues(step).SetToCurrentTime()
}

// round records the end of a round.
func (m *metrics) round(err error) {
	if err != nil {
		m.rounds.WithLabelValues(resultFailure).Inc()
		return
	}
	m.rounds.WithLabelValues(resultSuccess).Inc()
	m.roundSuccess.SetToCurrentTime()
}
