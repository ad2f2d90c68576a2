package ingest

import "github.com/prometheus/client_golang/prometheus"

// Where a partition stands in a replica.
const (
	// stateAnswered: owned, complete and answered for.
	stateAnswered = "answered"
	// stateBuilding: owned, and not complete yet since the service started.
	stateBuilding = "building"
	// stateLeaving: not owned, and answered for until its owner does.
	stateLeaving = "leaving"
	// stateDropping: not owned, and being deleted.
	stateDropping = "dropping"
)

// partitionMetrics counts the partitions of a replica by where they stand.
type partitionMetrics struct{ count *prometheus.GaugeVec }

func newPartitionMetrics(reg prometheus.Registerer) partitionMetrics {
	m := partitionMetrics{prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "nightjar", Subsystem: subsystem, Name: "partitions",
		Help: "Partitions of endpoints of this replica: answered, building (owned, not complete yet), leaving (answered until their owner does), dropping."}, []string{"state"})}
	reg.MustRegister(m.count)
	return m
}

func (m partitionMetrics) set(states map[string]int) {
	for state, n := range states {
		m.count.WithLabelValues(state).Set(float64(n))
	}
}
