package manager

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/ops"
)

// register tells of what the process as a whole is set to and uses.
func (m *Manager) register() {
	reg := m.ops.Registry("standalone")
	gauge := func(name, help string, value func() int64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "nightjar", Subsystem: "standalone", Name: name, Help: help},
			func() float64 { return float64(value()) }))
	}
	reg.MustRegister(ops.SyncInterval(m.cfg.Sync.Interval))
	gauge("store_bytes", "Bytes of disk that all stores together occupy.", m.guard.Used)
	if limit, ok := m.guard.Limit(); ok {
		gauge("store_limit_bytes", "Bytes that all stores together may occupy; ingest is refused from there on, a margin below --max-store. No value without a limit.", func() int64 { return limit })
	}
	if _, ok := m.guard.Spare(); ok {
		gauge("disk_spare_bytes", "Bytes of the file system of --data-dir that are free beyond those of --min-free; ingest is refused below 0.", func() int64 { n, _ := m.guard.Spare(); return n })
	}
}
