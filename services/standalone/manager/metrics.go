package manager

import (
	"math"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/ops"
)

// register tells of what the process as a whole is set to and uses.
func (m *Manager) register() {
	reg := m.ops.Registry("standalone")
	gauge := func(name, help string, value func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "nightjar", Subsystem: "standalone", Name: name, Help: help}, value))
	}
	reg.MustRegister(ops.SyncInterval(m.cfg.Sync.Interval))
	gauge("store_bytes", "Bytes of disk that all stores together occupy.", func() float64 { return float64(m.guard.Used()) })
	limit := math.Inf(1)
	if n, ok := m.guard.Limit(); ok {
		limit = float64(n)
	}
	gauge("store_limit_bytes", "Bytes that all stores together may occupy, a margin below --max-store; ingest is refused from there on. +Inf without a limit.", func() float64 { return limit })
	if _, ok := m.guard.Spare(); ok {
		gauge("disk_spare_bytes", "Bytes of the file system of --data-dir that are free beyond those of --min-free; ingest is refused below 0. No value with --min-free 0.", func() float64 { n, _ := m.guard.Spare(); return float64(n) })
	}
}
