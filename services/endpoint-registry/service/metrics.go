package registry

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/store"
)

const subsystem = "endpoint_registry"

type metrics struct {
	requests *prometheus.CounterVec
	failures *prometheus.CounterVec
	duration *prometheus.HistogramVec
	// conflicts counts changes that another replica's change overtook and
	// that were tried again.
	conflicts prometheus.Counter
	// malformed counts records that could not be read.
	malformed prometheus.Counter
}

// quietAfter are the times, with their names, from which on an endpoint that
// was heard of before counts as quiet.
var quietAfter = []struct {
	name string
	time time.Duration
}{{"1h", time.Hour}, {"1d", 24 * time.Hour}, {"7d", 7 * 24 * time.Hour}}

func newMetrics(reg prometheus.Registerer, db *store.DB, x *index) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "nightjar", Subsystem: subsystem,
			Name: "requests_total", Help: "Requests answered, by subject and code: ok or the kind of the error."}, []string{"subject", "code"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "nightjar", Subsystem: subsystem,
			Name: "errors_total", Help: "Requests that failed for a reason on the manager's side."}, []string{"subject"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "nightjar", Subsystem: subsystem,
			Name: "request_duration_seconds", Help: "Time taken to answer a request.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 4, 8)}, []string{"subject"}),
		conflicts: prometheus.NewCounter(prometheus.CounterOpts{Namespace: "nightjar", Subsystem: subsystem,
			Name: "conflicts_total", Help: "Changes tried again because another replica was faster."}),
		malformed: prometheus.NewCounter(prometheus.CounterOpts{Namespace: "nightjar", Subsystem: subsystem,
			Name: "malformed_records_total", Help: "Records of the bucket that could not be read and were passed over."}),
	}
	reg.MustRegister(m.requests, m.failures, m.duration, m.conflicts, m.malformed,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "nightjar", Subsystem: subsystem,
			Name: "endpoints", Help: "Endpoints that exist."}, func() float64 { return float64(x.size()) }),
		quiet{x})
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

var (
	quietDesc = prometheus.NewDesc("nightjar_"+subsystem+"_quiet_endpoints",
		"Endpoints that were heard of before and not within the time after; those of a longer time are among those of a shorter one.", []string{"after"}, nil)
	unseenDesc = prometheus.NewDesc("nightjar_"+subsystem+"_unseen_endpoints", "Endpoints that were never heard of.", nil, nil)
)

// quiet counts the endpoints that are not heard of, when it is asked.
type quiet struct{ x *index }

// Describe implements prometheus.Collector.
func (q quiet) Describe(ch chan<- *prometheus.Desc) { ch <- quietDesc; ch <- unseenDesc }

// Collect implements prometheus.Collector.
func (q quiet) Collect(ch chan<- prometheus.Metric) {
	counts, unseen := q.x.quiet(time.Now())
	for i, n := range counts {
		ch <- prometheus.MustNewConstMetric(quietDesc, prometheus.GaugeValue, float64(n), quietAfter[i].name)
	}
	ch <- prometheus.MustNewConstMetric(unseenDesc, prometheus.GaugeValue, float64(unseen))
}
