package ingest

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/store"
	"github.com/nightjar-edr/nightjar/pkg/view"
	"github.com/nightjar-edr/nightjar/services/log-ingest/internal/logstore"
)

const subsystem = "log_ingest"

type metrics struct {
	views                        *view.Metrics
	partitions                   partitionMetrics
	stored, repeated, untimed    prometheus.Counter
	alerts, alertsRepeated       prometheus.Counter
	chunks, unreadable, swept    *prometheus.CounterVec
	removed                      *prometheus.CounterVec
	requests, errors             *prometheus.CounterVec
	duration                     *prometheus.HistogramVec
	answeredLines, answeredBytes prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, db *store.DB) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: "nightjar", Subsystem: subsystem, Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "nightjar", Subsystem: subsystem, Name: name, Help: help}, labels)
		reg.MustRegister(c)
		return c
	}
	m := &metrics{
		views:          view.NewMetrics(reg, subsystem),
		partitions:     newPartitionMetrics(reg),
		stored:         counter("events_stored_total", "Events stored."),
		repeated:       counter("events_repeated_total", "Events passed over because their endpoint had sent them before."),
		untimed:        counter("events_untimed_total", "Events stored at their receipt time for want of a time of their own."),
		alerts:         counter("alerts_stored_total", "Alerts stored."),
		alertsRepeated: counter("alerts_repeated_total", "Alerts passed over because they were stored before."),
		chunks:         vec("chunks_total", "Chunks written.", "kind"),
		unreadable:     vec("unreadable_total", "Messages passed over because they cannot be read.", "stream"),
		removed:        vec("removed_total", "Messages passed over because what their endpoint had stored was removed.", "stream"),
		swept:          vec("swept_entries_total", "Entries of the store deleted after retention had removed their messages from the stream.", "stream"),
		requests:       vec("requests_total", "Requests answered.", "subject", "code"),
		errors:         vec("errors_total", "Requests that failed on this side.", "subject"),
		answeredLines:  counter("answered_lines_total", "Events and alerts given in answers."),
		answeredBytes:  counter("answered_bytes_total", "Bytes of the lines given in answers, before compression."),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "nightjar", Subsystem: subsystem,
			Name: "request_duration_seconds", Help: "Time spent on a request.", Buckets: prometheus.ExponentialBuckets(0.0005, 2.5, 12)}, []string{"subject"}),
	}
	reg.MustRegister(m.duration)
	for _, kind := range []logstore.Kind{logstore.Events, logstore.Alerts} {
		m.chunks.WithLabelValues(kind.String())
	}
	for _, name := range []string{stream.Events, stream.Alerts} {
		m.unreadable.WithLabelValues(name)
		m.swept.WithLabelValues(name)
		m.removed.WithLabelValues(name)
	}
	for _, on := range []string{querySubject, countSubject, message.ArtifactsList, message.ArtifactsCleared} {
		m.errors.WithLabelValues(on)
	}
	store.RegisterMetrics(reg, subsystem, db)
	return m
}

// allPartitions begins the subjects of requests for lines of all partitions.
const allPartitions = "edr.logs.*."

// querySubject and countSubject stand for the subjects of all partitions in
// metrics.
const (
	querySubject = allPartitions + message.LogsQuery
	countSubject = allPartitions + message.LogsCount
)

// observe notes an answered request.
func (m *metrics) observe(on string, took time.Duration, err error) {
	switch {
	case on == message.ArtifactsList || on == message.ArtifactsCleared:
	case strings.HasSuffix(on, "."+message.LogsCount):
		on = countSubject
	default:
		on = querySubject
	}
	code := "ok"
	if err != nil {
		kind := fault.From(err).Kind
		code = string(kind)
		if kind == fault.Internal || kind == fault.Unavailable {
			m.errors.WithLabelValues(on).Inc()
		}
	}
	m.requests.WithLabelValues(on, code).Inc()
	m.duration.WithLabelValues(on).Observe(took.Seconds())
}
