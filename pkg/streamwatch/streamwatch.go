package streamwatch

import (
	"context"
	"log/slog"
	"math"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

// lookEvery is how often the streams are looked at, lookTimeout how long one
// look may take.
const (
	lookEvery   = 15 * time.Second
	lookTimeout = 5 * time.Second
)

// Watch looks at the streams of a service. Make it with New and run it with
// Run.
type Watch struct {
	js                     jetstream.JetStream
	log                    *slog.Logger
	streams                []string
	bytes, limit, messages *prometheus.GaugeVec
}

// New registers the metrics of streams, which may not exist yet, labelled by
// stream. The metrics begin with nightjar_<service>_.
func New(reg prometheus.Registerer, service string, js jetstream.JetStream, log *slog.Logger, streams ...string) *Watch {
	gauge := func(name, help string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "nightjar", Subsystem: service, Name: name, Help: help}, []string{"stream"})
		reg.MustRegister(g)
		return g
	}
	return &Watch{
		js: js, log: log, streams: streams,
		bytes:    gauge("stream_bytes", "Bytes that a stream of this service has on a server. No value while NATS does not tell."),
		limit:    gauge("stream_limit_bytes", "Bytes that a stream of this service may have, beyond which it refuses messages; +Inf where there is no limit."),
		messages: gauge("stream_messages", "Messages in a stream of this service. No value while NATS does not tell."),
	}
}

// Run looks at once and then again and again until ctx ends.
func (w *Watch) Run(ctx context.Context) {
	lifecycle.Repeat(ctx, lookEvery, func() {
		for _, name := range w.streams {
			w.look(ctx, name)
		}
	})
}

// look takes the state of a stream over. What is not known is not told: an old
// value would hide what happens meanwhile.
func (w *Watch) look(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	s, err := w.js.Stream(ctx, name)
	if err != nil {
		w.log.Debug("look at a stream", "stream", name, "error", err)
		for _, g := range []*prometheus.GaugeVec{w.bytes, w.limit, w.messages} {
			g.DeleteLabelValues(name)
		}
		return
	}
	info := s.CachedInfo()
	w.bytes.WithLabelValues(name).Set(float64(info.State.Bytes))
	w.messages.WithLabelValues(name).Set(float64(info.State.Msgs))
	limit := math.Inf(1)
	if info.Config.MaxBytes > 0 {
		limit = float64(info.Config.MaxBytes)
	}
	w.limit.WithLabelValues(name).Set(limit)
}
