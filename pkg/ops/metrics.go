package ops

import (
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func buildInfo() prometheus.Collector {
	version, revision, goVersion := "unknown", "unknown", "unknown"
	if bi, ok := debug.ReadBuildInfo(); ok {
		version, goVersion = bi.Main.Version, bi.GoVersion
		for _, s := range bi.Settings {
			if s.Key == "vcs.revision" {
				revision = s.Value
			}
		}
	}
	g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "nightjar_build_info", Help: "Always 1; the labels say what was built.",
		ConstLabels: prometheus.Labels{"version": version, "revision": revision, "goversion": goVersion}})
	g.Set(1)
	return g
}

var readyDesc = prometheus.NewDesc("nightjar_ready", "1 when the check of /readyz of that name succeeds, else 0.", []string{"check"}, nil)

// readiness tells what /readyz does.
type readiness struct{ s *Server }

// Describe implements prometheus.Collector.
func (r readiness) Describe(ch chan<- *prometheus.Desc) { ch <- readyDesc }

// Collect implements prometheus.Collector.
func (r readiness) Collect(ch chan<- prometheus.Metric) {
	for name, err := range r.s.ready() {
		value := 1.0
		if err != nil {
			value = 0
		}
		ch <- prometheus.MustNewConstMetric(readyDesc, prometheus.GaugeValue, value, name)
	}
}

// SyncInterval tells how long what was acknowledged may wait for stable
// storage; 0 says that it is there before.
func SyncInterval(interval time.Duration) prometheus.Collector {
	g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "nightjar_sync_interval_seconds",
		Help: "How long what was acknowledged may wait for stable storage (--sync); 0: it is there before."})
	g.Set(interval.Seconds())
	return g
}
