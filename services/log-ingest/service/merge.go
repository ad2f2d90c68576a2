package ingest

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/beat"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/services/log-ingest/internal/logstore"
)

const (
	// DefaultMergeAfter is how long nothing must have come for an hour of an
	// endpoint until its chunks are merged, unless told otherwise.
	DefaultMergeAfter = 30 * time.Second
	// mergeShare is the part of a core that merging takes at most: it rests
	// mergeShare-1 times as long as it has worked.
	mergeShare = 4
	// mergeHours is how many hours of a kind are merged until it is looked
	// whether the part is still up to date, and the other kind has its turn.
	mergeHours = 64
)

// merging is what all parts have in common that merge chunks.
type merging struct {
	// one is held by the part that merges.
	one     sync.Mutex
	chunks  *prometheus.CounterVec
	seconds prometheus.Counter
}

func newMerging(reg prometheus.Registerer) *merging {
	m := &merging{
		chunks: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "nightjar", Subsystem: subsystem, Name: "merge_chunks_total",
			Help: "Chunks that were merged (read), and what they were merged into (written)."}, []string{"kind", "step"}),
		seconds: prometheus.NewCounter(prometheus.CounterOpts{Namespace: "nightjar", Subsystem: subsystem, Name: "merge_seconds_total",
			Help: "Time spent on merging chunks."}),
	}
	reg.MustRegister(m.chunks, m.seconds)
	for _, kind := range []logstore.Kind{logstore.Events, logstore.Alerts} {
		m.count(kind, logstore.Merged{})
	}
	return m
}

func (m *merging) count(kind logstore.Kind, done logstore.Merged) {
	m.chunks.WithLabelValues(kind.String(), "read").Add(float64(done.Read))
	m.chunks.WithLabelValues(kind.String(), "written").Add(float64(done.Written))
}

// registerWaiting tells how many hours wait to be merged.
func registerWaiting(reg prometheus.Registerer, r *logstore.Reader) {
	for _, kind := range []logstore.Kind{logstore.Events, logstore.Alerts} {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "nightjar", Subsystem: subsystem, Name: "merge_waiting_hours",
			Help: "Hours of endpoints with chunks that were not merged yet.", ConstLabels: prometheus.Labels{"kind": kind.String()}}, func() float64 {
			n, err := r.Waiting(kind)
			if err != nil {
				return -1
			}
			return float64(n)
		}))
	}
}

// merge merges the chunks of a part until ctx ends, while the part is up to date
// and there is room. It looks for some a few times within the time for which
// nothing must have come.
func (s *Service) merge(ctx context.Context, t *part) {
	every := max(s.cfg.MergeAfter/3, 50*time.Millisecond)
	for more := false; ; {
		if !more && lifecycle.Sleep(ctx, beat.Next(every)) != nil {
			return
		}
		more = false
		for _, f := range t.folders {
			if t.ready() != nil || s.cfg.Room != nil && s.cfg.Room() != nil {
				more = false
				break
			}
			done, err := s.mergeSome(ctx, f)
			more = more || done.More && err == nil
			if err != nil && ctx.Err() == nil {
				s.cfg.Log.Warn("chunks are not merged, tried again later", "kind", f.kind.String(), "error", err)
			}
		}
	}
}

// mergeSome merges the chunks of some hours.
func (s *Service) mergeSome(ctx context.Context, f *folder) (logstore.Merged, error) {
	s.merging.one.Lock()
	defer s.merging.one.Unlock()
	done, err := f.writer.Merge(ctx, logstore.Merging{Owns: f.own.owns, Exclusive: f.exclusive, Quiet: s.cfg.MergeAfter, Step: s.rest, Hours: mergeHours})
	s.merging.count(f.kind, done)
	return done, err
}

// rest lets others work after a step of merging.
func (s *Service) rest(ctx context.Context, took time.Duration) error {
	s.merging.seconds.Add(took.Seconds())
	return lifecycle.Sleep(ctx, (mergeShare-1)*took)
}
