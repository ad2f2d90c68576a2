package view

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the metrics of a service's views, labelled by view.
type Metrics struct {
	position, lag, gap *prometheus.GaugeVec
	folded, missing    *prometheus.CounterVec
	ages               *ages
}

// NewMetrics registers the metrics of the views of a service.
func NewMetrics(reg prometheus.Registerer, service string) *Metrics {
	gauge := func(name, help string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "nightjar", Subsystem: service, Name: name, Help: help}, []string{"view"})
		reg.MustRegister(g)
		return g
	}
	counter := func(name, help string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "nightjar", Subsystem: service, Name: name, Help: help}, []string{"view"})
		reg.MustRegister(c)
		return c
	}
	behind := &ages{views: map[string]*View{}, desc: prometheus.NewDesc("nightjar_"+service+"_view_lag_seconds",
		"How far the view is behind its stream by the age of messages, 0 when none waits.", []string{"view"}, nil)}
	reg.MustRegister(behind)
	return &Metrics{
		ages:     behind,
		position: gauge("view_position", "Sequence of the stream up to which everything is folded."),
		lag:      gauge("view_lag_messages", "Messages of the stream that are not folded yet."),
		gap:      gauge("view_gap", "1 when the view has met a gap in its stream and stands still."),
		folded:   counter("view_folded_messages_total", "Messages folded."),
		missing:  counter("view_missing_messages_total", "Messages that left the stream before the view had them, with their retention or deleted from within."),
	}
}

// add begins to tell of a view, in the place of one that had its name before.
func (m *Metrics) add(v *View) {
	name := v.cfg.Name
	m.position.WithLabelValues(name).Set(float64(v.seq))
	m.lag.WithLabelValues(name).Set(0)
	m.gap.WithLabelValues(name).Set(0)
	m.folded.WithLabelValues(name)
	m.missing.WithLabelValues(name)
	m.ages.set(name, v)
}

// ages tells how far views are behind, counted when it is asked for, so that it
// grows while a fold takes long.
type ages struct {
	desc  *prometheus.Desc
	mu    sync.Mutex
	views map[string]*View
}

// set follows the view with a name, nil for none.
func (a *ages) set(name string, v *View) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if v == nil {
		delete(a.views, name)
		return
	}
	a.views[name] = v
}

// Describe implements prometheus.Collector.
func (a *ages) Describe(ch chan<- *prometheus.Desc) { ch <- a.desc }

// Collect implements prometheus.Collector.
func (a *ages) Collect(ch chan<- prometheus.Metric) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for name, v := range a.views {
		ch <- prometheus.MustNewConstMetric(a.desc, prometheus.GaugeValue, v.lagSeconds(), name)
	}
}

// lagSeconds returns how long ago that was up to which everything is folded, 0
// when nothing waits.
func (v *View) lagSeconds() float64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.behind.IsZero() {
		return 0
	}
	return max(0, time.Since(v.behind).Seconds())
}
