package scorer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/view"
)

var keyPrefix = "$KV." + stream.Reports + "."

// retryInterval is how long the fold waits before it reads the stream again.
const retryInterval = 250 * time.Millisecond

// foldMarks takes clears into the store and, once committed, into memory.
func (s *Service) foldMarks(txn *badger.Txn, msgs []view.Msg) (func(), error) {
	marks := make(map[string]mark, len(msgs))
	malformed := 0
	for i := range msgs {
		msg := &msgs[i]
		uuid := strings.TrimPrefix(msg.Subject, keyPrefix)
		m := mark{Revision: msg.Seq}
		var r message.ReportRecord
		// Nothing deletes a clear; where somebody does, it still holds here,
		// and its revision has to be known for the next one.
		if err := json.Unmarshal(msg.Data, &r); err != nil || !subject.IsUUID(uuid) {
			malformed++
			s.cfg.Log.Error("record of a clear cannot be read", "key", uuid, "revision", msg.Seq)
			r.Cleared = 0
		}
		if !subject.IsUUID(uuid) {
			continue
		}
		known, ok := marks[uuid]
		if !ok {
			known = s.mark(uuid)
		}
		m.Cleared = max(known.Cleared, r.Cleared)
		marks[uuid] = m
		value, err := json.Marshal(m)
		if err != nil {
			return nil, fmt.Errorf("encode clear of %s: %w", uuid, err)
		}
		if err := txn.Set([]byte(clearedPrefix+uuid), value); err != nil {
			return nil, err
		}
	}
	return func() {
		s.metrics.malformed.Add(float64(malformed))
		s.marksMu.Lock()
		for uuid, m := range marks {
			s.marks[uuid] = m
		}
		s.marksMu.Unlock()
		s.stale.Store(true)
	}, nil
}

// group is what a fold of alerts gathers before it writes.
type group struct {
	tallies map[string]*tally
	marks   map[string]mark
	// names are names met and the generation to note, 0 and false where
	// nothing is new; census how many endpoints have a name, where that
	// changes; size is how many names there are.
	names   map[endpointName]newName
	census  map[nameHash]uint64
	size    uint64
	grown   bool
	folded  int
	ignored int
	removed int
}

// endpointName is a name of an endpoint's alerts.
type endpointName struct {
	uuid string
	hash nameHash
}

// newName is the last generation in which an endpoint's alerts had a name, and
// whether that is to be written.
type newName struct {
	generation uint64
	write      bool
}

// foldAlerts adds alerts to their endpoints' statistics and their names to
// the census.
func (s *Service) foldAlerts(txn *badger.Txn, msgs []view.Msg) (func(), error) {
	g := group{tallies: map[string]*tally{}, marks: map[string]mark{}, names: map[endpointName]newName{}, census: map[nameHash]uint64{}}
	err := s.db.View(func(snapshot *badger.Txn) (err error) {
		g.size, err = readCensus(snapshot)
		return err
	})
	if err != nil {
		return nil, err
	}
	for i := range msgs {
		if err := s.foldAlert(&g, &msgs[i]); err != nil {
			return nil, err
		}
	}
	if err := g.write(txn); err != nil {
		return nil, err
	}
	return func() {
		s.metrics.folded.Add(float64(g.folded))
		s.metrics.malformed.Add(float64(g.ignored))
		s.metrics.removed.Add(float64(g.removed))
		s.metrics.census.Set(float64(g.size))
		for _, t := range g.tallies {
			s.metrics.uncounted.Add(float64(t.uncounted))
		}
	}, nil
}

func (s *Service) foldAlert(g *group, m *view.Msg) error {
	uuid := subject.Endpoint(m.Subject)
	a, err := message.ParseAlert(m.Header, m.Data)
	if err != nil || !subject.IsUUID(uuid) {
		g.ignored++
		s.cfg.Log.Error("alert cannot be read", "sequence", m.Seq, "error", err)
		return nil
	}
	t := g.tallies[uuid]
	if a.Generation < s.removals.Generation(uuid) || t != nil && a.Generation < t.record.Generation {
		g.removed++
		return nil
	}
	g.folded++
	if err := s.foldCensus(g, uuid, a.Generation, a.Signatures); err != nil {
		return err
	}
	if t != nil && a.Generation > t.record.Generation {
		t = newTally(uuid, t.record.renewed(a.Generation, g.marks[uuid]))
		g.tallies[uuid] = t
	}
	if t == nil {
		// The mark is looked up once for a group, so that what the group
		// writes is exact for one mark.
		mk, ok := g.marks[uuid]
		if !ok {
			mk = s.mark(uuid)
			g.marks[uuid] = mk
		}
		if m.Seq <= mk.Cleared {
			return nil
		}
		if t, err = s.tallyToFold(uuid, mk); err != nil {
			return err
		}
		switch {
		case a.Generation < t.record.Generation:
			g.removed++
			return nil
		case a.Generation > t.record.Generation:
			t = newTally(uuid, t.record.renewed(a.Generation, mk))
		}
		g.tallies[uuid] = t
	}
	return t.add(&a, at(&a, m.Time), m.Seq, func(h nameHash) (c count, err error) {
		err = s.db.View(func(snapshot *badger.Txn) error {
			c, err = readCount(snapshot, countKey(uuid, t.record.Begin, h))
			return err
		})
		return c, err
	})
}

// tallyToFold is tally for the fold, which must not fail because the stream
// cannot be read just now: it tries until the service stops.
func (s *Service) tallyToFold(uuid string, m mark) (*tally, error) {
	for {
		ctx, cancel := context.WithTimeout(s.work, requestTimeout)
		t, err := s.tally(ctx, uuid, m)
		cancel()
		if !errors.Is(err, errStream) {
			return t, err
		}
		s.cfg.Log.Warn("statistics wait for the stream", "endpoint", uuid, "error", err)
		select {
		case <-s.work.Done():
			return nil, errors.Join(err, s.work.Err())
		case <-time.After(retryInterval):
		}
	}
}

// foldCensus adds names of an endpoint's alert to the census.
func (s *Service) foldCensus(g *group, uuid string, generation uint64, names []string) error {
	for _, name := range names[:min(len(names), maxNamesPerAlert)] {
		key := endpointName{uuid, hashOf(name)}
		if met, ok := g.names[key]; ok && met.generation >= generation {
			continue
		}
		err := s.db.View(func(snapshot *badger.Txn) error {
			had, known, err := readNumber(snapshot, namesKey(uuid, key.hash))
			if err != nil {
				return err
			}
			_, met := g.names[key]
			g.names[key] = newName{generation: max(had, generation), write: !known || generation > had}
			if known || met {
				return nil
			}
			n, ok := g.census[key.hash]
			if !ok {
				if n, _, err = readNumber(snapshot, censusKey(key.hash)); err != nil {
					return err
				}
			}
			if g.census[key.hash] = n + 1; n == 0 {
				g.size++
				g.grown = true
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// write puts what was gathered into the transaction.
func (g *group) write(txn *badger.Txn) error {
	for key, name := range g.names {
		if name.write {
			if err := writeNumber(txn, namesKey(key.uuid, key.hash), name.generation); err != nil {
				return err
			}
		}
	}
	for h, n := range g.census {
		if err := writeNumber(txn, censusKey(h), n); err != nil {
			return err
		}
	}
	if g.grown {
		if err := writeNumber(txn, []byte(censusSizeKey), g.size); err != nil {
			return err
		}
	}
	for uuid, t := range g.tallies {
		for h, c := range t.counts {
			if err := txn.Set(countKey(uuid, t.record.Begin, h), c.encode()); err != nil {
				return err
			}
		}
		if err := writeRecord(txn, uuid, t.record); err != nil {
			return err
		}
	}
	return nil
}
