package scorer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/services/report-scorer/internal/report"
)

// How clears and alerts meet, in whatever order a replica learns of them:
//
// A record of the store is always exact for the alerts in (Begin, Last], and
// says so itself. Whoever uses one holds it against the endpoint's mark. When
// the mark is not above Begin, the record is the report's. When it is at or
// above Last, the record has nothing that still counts. When it lies between,
// the clear was made by a replica that had folded less: the record is made
// anew from the stream for (mark, Last], which is short, as clears reach
// every replica at once. At a rebuild all marks are there before the first
// alert is folded.
//
// Only the fold of ALERTS extends records. It reads them outside of its
// transaction, so that it cannot conflict; at worst it writes over a record
// made anew an older one, which is exact as well and will be made anew again.

// Bounds of what one endpoint and one alert may bring in. A report of
// maxNameBytes and full sets fits into a message.
const (
	maxNames         = 100_000
	maxNameBytes     = 6 << 20
	maxNameLength    = 512
	maxNamesPerAlert = 1000
)

// errStream means that alerts could not be read from the stream again.
var errStream = errors.New("read alerts again")

// tally is a record in memory with the counts that were touched, while alerts
// are added to it.
type tally struct {
	uuid   string
	record record
	counts map[nameHash]count
	// uncounted is how many names were left out.
	uncounted int
}

func newTally(uuid string, r record) *tally {
	return &tally{uuid: uuid, record: r, counts: map[nameHash]count{}}
}

// renewed returns the record that follows one of an earlier generation. It
// begins behind everything that is counted in that one.
func (r record) renewed(generation uint64, m mark) record {
	return record{Generation: generation, Begin: max(r.Last, m.Cleared)}
}

// add adds an alert. stored reads a count that the tally does not hold yet.
func (t *tally) add(a *message.Alert, at time.Time, seq uint64, stored func(nameHash) (count, error)) error {
	t.record.Stats.Add(at, a.Signatures, a.Rules)
	t.record.Last = seq
	names := a.Signatures
	if len(names) > maxNamesPerAlert {
		t.uncounted += len(names) - maxNamesPerAlert
		names = names[:maxNamesPerAlert]
	}
	for _, name := range names {
		h := hashOf(name)
		c, ok := t.counts[h]
		if !ok {
			var err error
			if c, err = stored(h); err != nil {
				return err
			}
		}
		if c.n == 0 {
			size := reportBytes(name)
			if len(name) > maxNameLength || t.record.Names >= maxNames || t.record.NameBytes+size > maxNameBytes {
				t.uncounted++
				continue
			}
			t.record.Names++
			t.record.NameBytes += size
			c.name = name
		}
		c.n++
		t.counts[h] = c
	}
	return nil
}

// reportBytes returns what a name takes in a report, at most: as a key and in
// the list, with its count.
func reportBytes(name string) int {
	const punctuation, number = 5, 20
	text, err := json.Marshal(name)
	if err != nil {
		return maxNameBytes // no string fails to be written
	}
	return 2*len(text) + punctuation + number
}

// at returns the time of an alert in a form that can be stored.
func at(a *message.Alert, received time.Time) time.Time { return report.Storable(a.Time, received) }

// tally returns an endpoint's record as a tally to add alerts to that come
// behind the mark. It begins anew, or is made anew, as the mark demands.
func (s *Service) tally(ctx context.Context, uuid string, m mark) (*tally, error) {
	for {
		r, err := s.record(uuid)
		switch {
		case err != nil:
			return nil, err
		case r.Begin < m.Cleared && r.Last <= m.Cleared:
			r = record{Generation: r.Generation, Begin: m.Cleared}
		case r.Begin < m.Cleared:
			if err := s.rebuild(ctx, uuid, m.Cleared); err != nil {
				return nil, err
			}
			continue
		}
		return newTally(uuid, r), nil
	}
}

// rebuild makes a record that reaches over a clear anew from the stream. It
// does nothing when that is no longer called for. The record may be extended
// meanwhile; the caller looks again.
func (s *Service) rebuild(ctx context.Context, uuid string, cleared uint64) error {
	s.rebuilding.Lock()
	defer s.rebuilding.Unlock()
	old, err := s.record(uuid)
	if err != nil {
		return err
	}
	if old.Begin >= cleared || old.Last <= cleared {
		return nil
	}
	t := newTally(uuid, record{Generation: old.Generation, Begin: cleared})
	if err := s.replay(ctx, t, old.Last); err != nil {
		return fmt.Errorf("statistics of %s from sequence %d: %w", uuid, cleared, err)
	}
	// The last alert may have left the stream; what the record reaches to is
	// the same.
	t.record.Last = old.Last
	batch := s.db.NewWriteBatch()
	defer batch.Cancel()
	for h, c := range t.counts {
		if err := batch.Set(countKey(uuid, cleared, h), c.encode()); err != nil {
			return fmt.Errorf("counts of %s: %w", uuid, err)
		}
	}
	if err := batch.Flush(); err != nil {
		return fmt.Errorf("counts of %s: %w", uuid, err)
	}
	written := false
	err = s.db.Update(func(txn *badger.Txn) error {
		now, err := readRecord(txn, uuid)
		if err != nil || now.Last != old.Last {
			return err
		}
		written = true
		return writeRecord(txn, uuid, t.record)
	})
	switch {
	case errors.Is(err, badger.ErrConflict):
		return nil // extended at this moment
	case err != nil:
		return fmt.Errorf("statistics of %s: %w", uuid, err)
	case written:
		s.metrics.rebuilt.Inc()
		s.stale.Store(true)
	}
	return nil
}

// replay adds an endpoint's alerts behind the tally's beginning, up to and
// including sequence last. The leader of the stream says which is the newest, for
// in a cluster the consumer may stand at a server whose copy is behind.
func (s *Service) replay(ctx context.Context, t *tally, last uint64) error {
	newest, err := stream.LastSequence(ctx, s.cfg.Bus.JS, stream.Alerts, subject.AllAlertsOf(t.uuid))
	if err != nil {
		return fmt.Errorf("%w: %w", errStream, err)
	}
	if newest <= t.record.Begin {
		return nil
	}
	c, err := s.cfg.Bus.JS.OrderedConsumer(ctx, stream.Alerts, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{subject.AllAlertsOf(t.uuid)},
		DeliverPolicy:  jetstream.DeliverByStartSequencePolicy, OptStartSeq: t.record.Begin + 1,
	})
	if err != nil {
		return fmt.Errorf("%w: %w", errStream, err)
	}
	it, err := c.Messages(jetstream.PullMaxMessages(256))
	if err != nil {
		return fmt.Errorf("%w: %w", errStream, err)
	}
	defer it.Stop()
	for {
		m, err := it.Next(jetstream.NextContext(ctx))
		if err != nil {
			return fmt.Errorf("%w: %w", errStream, err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return fmt.Errorf("%w: %w", errStream, err)
		}
		seq := meta.Sequence.Stream
		if seq > last {
			return nil
		}
		// One that cannot be read was passed over, and counted, by the fold.
		if a, err := message.ParseAlert(m.Headers(), m.Data()); err == nil && subject.Endpoint(m.Subject()) == t.uuid && a.Generation == t.record.Generation {
			if err := t.add(&a, at(&a, meta.Timestamp), seq, func(nameHash) (count, error) { return count{}, nil }); err != nil {
				return err
			}
		}
		if seq >= min(last, newest) {
			return nil
		}
	}
}

// report returns an endpoint's report, nil when there is none, with the
// sequence of the last alert in it and the mark it was made with.
func (s *Service) report(ctx context.Context, uuid string) (r *message.Report, last uint64, m mark, err error) {
	for {
		m = s.mark(uuid)
		torn := false
		err = s.db.View(func(txn *badger.Txn) error {
			rec, err := readRecord(txn, uuid)
			if err != nil || rec.Last <= m.Cleared || rec.Generation < s.removals.Generation(uuid) {
				return err
			}
			if torn = rec.Begin < m.Cleared; torn {
				return nil
			}
			counts, err := readCounts(txn, uuid, rec.Begin)
			if err != nil {
				return err
			}
			census, err := readCensus(txn)
			if err != nil {
				return err
			}
			r, last = rec.Stats.Report(uuid, counts, int64(census)), rec.Last
			return nil
		})
		if err != nil || !torn {
			return r, last, m, err
		}
		if err := s.rebuild(ctx, uuid, m.Cleared); err != nil {
			return nil, 0, m, err
		}
	}
}
