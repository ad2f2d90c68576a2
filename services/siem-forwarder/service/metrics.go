package forwarder

import (
	"github.com/prometheus/client_golang/prometheus"
)

const subsystem = "siem_forwarder"

type metrics struct {
	forwarded                              *prometheus.CounterVec
	refused, filtered, shortened, failures prometheus.Counter
	duration                               prometheus.Histogram
	pending, inHand, lag                   prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: "nightjar", Subsystem: subsystem, Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "nightjar", Subsystem: subsystem, Name: name, Help: help})
		reg.MustRegister(g)
		return g
	}
	m := &metrics{
		forwarded: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "nightjar", Subsystem: subsystem,
			Name: "alerts_forwarded_total", Help: "Alerts that the target has taken, by severity."}, []string{"severity"}),
		refused:   counter("rejected_total", "Alerts that the target refused for good or that could not be read; they are in the file of refused alerts."),
		filtered:  counter("filtered_total", "Alerts below the lowest severity that is forwarded."),
		shortened: counter("shortened_total", "Alerts that were shortened to fit the largest message."),
		failures:  counter("failures_total", "Attempts to hand alerts over that must be repeated."),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "nightjar", Subsystem: subsystem,
			Name: "send_duration_seconds", Help: "Time taken by one attempt to hand a batch over.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 9)}),
		pending: gauge("pending_alerts", "Alerts in the stream that have not been fetched yet, when it was last looked."),
		inHand:  gauge("alerts_in_hand", "Alerts fetched and not yet acknowledged."),
		lag:     gauge("lag_seconds", "Age of the alert forwarded last, from its receipt by the manager until the target took it."),
	}
	reg.MustRegister(m.forwarded, m.duration)
	for _, s := range severities {
		m.forwarded.WithLabelValues(string(s))
	}
	return m
}
