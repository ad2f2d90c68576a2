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
	// census are names met, and whether they are new; size is how many names
	// there are.
	census  map[nameHash]bool
	size    uint64
	grown   bool
	folded  int
	ignored int
}

// foldAlerts adds alerts to their endpoints' statistics and their names to
// the census.
func (s *Service) foldAlerts(txn *badger.Txn, msgs []view.Msg) (func(), error) {
	g := group{tallies: map[string]*tally{}, marks: map[string]mark{}, census: map[nameHash]bool{}}
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
	g.folded++
	if err := s.foldCensus(g, a.Signatures); err != nil {
		return err
	}
	t := g.tallies[uuid]
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

// foldCensus adds names to the census.
func (s *Service) foldCensus(g *group, names []string) error {
	for _, name := range names[:min(len(names), maxNamesPerAlert)] {
		h := hashOf(name)
		if _, met := g.census[h]; met {
			continue
		}
		var known bool
		err := s.db.View(func(snapshot *badger.Txn) (err error) {
			known, err = get(snapshot, censusKey(h), func([]byte) error { return nil })
			return err
		})
		if err != nil {
			return err
		}
		g.census[h] = !known
		if !known {
			g.size++
			g.grown = true
		}
	}
	return nil
}

// write puts what was gathered into the transaction.
func (g *group) write(txn *badger.Txn) error {
	for h, isNew := range g.census {
		if isNew {
			if err := txn.Set(censusKey(h), nil); err != nil {
				return err
			}
		}
	}
	if g.grown {
		if err := writeCensus(txn, g.size); err != nil {
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
