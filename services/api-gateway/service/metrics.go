package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/certs"
	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/store"
)

const subsystem = "api_gateway"

// metrics are the gateway's metrics beside those of its views.
type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	inflight *prometheus.GaugeVec
	panics   prometheus.Counter
	events   prometheus.Counter
	batches  prometheus.Counter
	bytes    prometheus.Counter
	refused  *prometheus.CounterVec
	letters  *prometheus.CounterVec
	unaudit  prometheus.Counter
	hashed   prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, db *store.DB, endpoints func() int) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "nightjar", Subsystem: subsystem, Name: name, Help: help})
	}
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "nightjar", Subsystem: subsystem,
			Name: "requests_total", Help: "Requests answered."}, []string{"api", "route", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "nightjar", Subsystem: subsystem,
			Name: "request_duration_seconds", Help: "Time from a request's header to the end of its answer.",
			Buckets: []float64{.001, .005, .01, .05, .1, .5, 1, 5, 10, 60, 600}}, []string{"api", "route"}),
		inflight: prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "nightjar", Subsystem: subsystem,
			Name: "requests_in_flight", Help: "Requests being worked on."}, []string{"api"}),
		panics:  counter("errors_total", "Requests that failed because of an error of the gateway itself."),
		events:  counter("events_received_total", "Events that are stored in the stream EVENTS, or in INTAKE on their way there."),
		batches: counter("batches_published_total", "Batches that are stored in the stream EVENTS, or in INTAKE on their way there."),
		bytes:   counter("bytes_received_total", "Bytes of the bodies of POST /logs, as they were sent."),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "nightjar", Subsystem: subsystem,
			Name: "ingest_refused_total", Help: "Requests POST /logs that were not answered with 200, by reason."}, []string{"reason"}),
		letters: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "nightjar",
			Name: "dead_letters_total", Help: "Dead letters written.", ConstLabels: prometheus.Labels{"service": access.Gateway}}, []string{"reason"}),
		unaudit: counter("audit_failures_total", "Changes whose record could not be stored in the stream AUDIT and stands in the log instead."),
		hashed:  counter("containers_read_total", "Containers that were read to compute their hash, once for each revision unless reading fails."),
	}
	reg.MustRegister(m.requests, m.duration, m.inflight, m.panics, m.events, m.batches, m.bytes, m.refused, m.letters, m.unaudit, m.hashed,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "nightjar", Subsystem: subsystem, Name: "endpoints", Help: "Endpoints that may talk to the manager."},
			func() float64 { return float64(endpoints()) }))
	for _, reason := range refusals {
		m.refused.WithLabelValues(reason)
	}
	for _, reason := range []string{message.ReasonNotJSON, message.ReasonNotObject, message.ReasonTooDeep, message.ReasonTooLong} {
		m.letters.WithLabelValues(reason)
	}
	for _, api := range []string{"admin", "agent"} {
		m.inflight.WithLabelValues(api)
	}
	store.RegisterMetrics(reg, subsystem, db)
	return m
}

// showExpiry tells until when the certificate of the APIs is good, unless they
// speak plain HTTP.
func showExpiry(reg prometheus.Registerer, cfg *tls.Config) {
	if cfg == nil || len(cfg.Certificates) == 0 {
		return
	}
	var chain []*x509.Certificate
	for _, der := range cfg.Certificates[0].Certificate {
		if c, err := x509.ParseCertificate(der); err == nil { // one that cannot be read is not what clients judge by
			chain = append(chain, c)
		}
	}
	g := prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "nightjar", Subsystem: subsystem, Name: "certificate_expiry_timestamp_seconds",
		Help: "When the first certificate of the chain that both APIs show expires, in Unix time. No value without TLS."})
	g.Set(float64(certs.Expiry(chain).Unix()))
	reg.MustRegister(g)
}

// observe counts a request. code is its status, or aborted where an answer was
// broken off.
func (m *metrics) observe(api, route, code string, took time.Duration) {
	m.requests.WithLabelValues(api, route, code).Inc()
	m.duration.WithLabelValues(api, route).Observe(took.Seconds())
}
