package ruleengine

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

// siemLook is how often the consumers of SIEMs are looked at, siemTimeout how
// long that may take for one.
const (
	siemLook    = 10 * time.Second
	siemTimeout = 5 * time.Second
)

// siemWatch tells how far each SIEM is with its alerts. Their number is that of
// the setting siem.
type siemWatch struct {
	js    jetstream.JetStream
	log   *slog.Logger
	names []string

	pending, unacked, deliveries *prometheus.Desc

	mu    sync.Mutex
	known map[string]*jetstream.ConsumerInfo
}

func newSIEMWatch(reg prometheus.Registerer, js jetstream.JetStream, log *slog.Logger, names []string) *siemWatch {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("nightjar_"+subsystem+"_"+name, help, []string{"siem"}, nil)
	}
	w := &siemWatch{
		js: js, log: log, names: names, known: map[string]*jetstream.ConsumerInfo{},
		pending:    desc("siem_pending_alerts", "Alerts that a SIEM has not fetched yet. No value while NATS does not tell."),
		unacked:    desc("siem_unacknowledged_alerts", "Alerts that a SIEM has fetched and not acknowledged yet."),
		deliveries: desc("siem_deliveries_total", "Alerts that a SIEM has fetched, counted as often as it fetched them; 0 says that nobody has ever used its consumer."),
	}
	reg.MustRegister(w)
	return w
}

// run looks at once and then again and again until ctx ends.
func (w *siemWatch) run(ctx context.Context) {
	lifecycle.Repeat(ctx, siemLook, func() {
		for _, name := range w.names {
			w.look(ctx, name)
		}
	})
}

func (w *siemWatch) look(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeout(ctx, siemTimeout)
	defer cancel()
	c, err := w.js.Consumer(ctx, stream.Alerts, name)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.log.Debug("look at the consumer of a SIEM", "siem", name, "error", err)
		delete(w.known, name)
		return
	}
	w.known[name] = c.CachedInfo()
}

// Describe implements prometheus.Collector.
func (w *siemWatch) Describe(ch chan<- *prometheus.Desc) {
	ch <- w.pending
	ch <- w.unacked
	ch <- w.deliveries
}

// Collect implements prometheus.Collector.
func (w *siemWatch) Collect(ch chan<- prometheus.Metric) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, info := range w.known {
		ch <- prometheus.MustNewConstMetric(w.pending, prometheus.GaugeValue, float64(info.NumPending), name)
		ch <- prometheus.MustNewConstMetric(w.unacked, prometheus.GaugeValue, float64(info.NumAckPending), name)
		ch <- prometheus.MustNewConstMetric(w.deliveries, prometheus.CounterValue, float64(info.Delivered.Consumer), name)
	}
}
