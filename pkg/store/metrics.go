package store

import (
	"github.com/prometheus/client_golang/prometheus"
)

// RegisterMetrics registers the metrics of a service's store: its size, and
// whether it really has each commit on stable storage.
func RegisterMetrics(reg prometheus.Registerer, service string, db *DB) {
	gauge := func(name, help string, value func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "nightjar", Subsystem: service, Name: name, Help: help}, value))
	}
	gauge("store_bytes", "Size of the store on disk.", func() float64 {
		lsm, vlog := db.Size()
		return float64(lsm + vlog)
	})
	gauge("store_sync_always", "1 when each commit of the store waits for stable storage.", func() float64 {
		if db.Opts().SyncWrites {
			return 1
		}
		return 0
	})
}
