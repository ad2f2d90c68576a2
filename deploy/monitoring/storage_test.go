package monitoring

import (
	"context"
	"slices"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
)

// sample is a value of a series.
type sample struct {
	t int64 // in milliseconds
	v float64
}

func (s sample) T() int64                      { return s.t }
func (s sample) F() float64                    { return s.v }
func (s sample) H() *histogram.Histogram       { return nil }
func (s sample) FH() *histogram.FloatHistogram { return nil }
func (s sample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s sample) Copy() chunks.Sample           { return s }

// series is a metric with its samples in the order of time.
type series struct {
	labels  labels.Labels
	samples []chunks.Sample
}

// memory is a storage for the engine. Prometheus' own brings hundreds of
// packages with it.
type memory struct{ by map[uint64]*series }

func newMemory() *memory { return &memory{by: map[uint64]*series{}} }

// add appends a sample to a series.
func (m *memory) add(l labels.Labels, t int64, v float64) {
	s := m.by[l.Hash()]
	if s == nil {
		s = &series{labels: l}
		m.by[l.Hash()] = s
	}
	s.samples = append(s.samples, sample{t, v})
}

// Querier implements storage.Queryable.
func (m *memory) Querier(mint, maxt int64) (storage.Querier, error) {
	return &querier{m: m, mint: mint, maxt: maxt}, nil
}

type querier struct {
	storage.MockQuerier
	m          *memory
	mint, maxt int64
}

// Select implements storage.Querier.
func (q *querier) Select(_ context.Context, _ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	found := &set{at: -1}
	for _, s := range q.m.by {
		if slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches(s.labels.Get(m.Name)) }) {
			continue
		}
		var in []chunks.Sample
		for _, p := range s.samples {
			if p.T() >= q.mint && p.T() <= q.maxt {
				in = append(in, p)
			}
		}
		if len(in) > 0 {
			found.list = append(found.list, storage.NewListSeries(s.labels, in))
		}
	}
	slices.SortFunc(found.list, func(a, b storage.Series) int { return labels.Compare(a.Labels(), b.Labels()) })
	return found
}

type set struct {
	list []storage.Series
	at   int
}

func (s *set) Next() bool                        { s.at++; return s.at < len(s.list) }
func (s *set) At() storage.Series                { return s.list[s.at] }
func (s *set) Err() error                        { return nil }
func (s *set) Warnings() annotations.Annotations { return nil }
