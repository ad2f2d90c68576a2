package logstore

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/dgraph-io/badger/v4"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
)

const (
	// crowd is how many chunks may lie over each other before the hashes of
	// a further one become keys of the store. It bounds the cost of looking
	// for a repetition, whatever the times of an endpoint's lines are.
	crowd = 16
	// A state that grows beyond maxRecent chunks is cut to the keepRecent
	// that reach farthest, unless older ones were asked for.
	maxRecent  = 32
	keepRecent = 16
)

// clone returns a copy whose chunks may be changed.
func (h *hourState) clone() *hourState {
	c := *h
	c.chunks, c.reach = slices.Clone(h.chunks), nil
	return &c
}

// add notes a chunk; seal must follow.
func (h *hourState) add(s span) {
	h.max = max(h.max, s.max)
	if !s.merged {
		h.fresh++
	}
	if !s.keyed {
		h.chunks = append(h.chunks, s)
		return
	}
	if h.keyedMax < 0 {
		h.keyedMin = s.min
	}
	h.keyedMin, h.keyedMax = min(h.keyedMin, s.min), max(h.keyedMax, s.max)
}

// seal puts the chunks in order after additions.
func (h *hourState) seal() {
	byMin := func(a, b span) int { return cmp.Compare(a.min, b.min) }
	if !slices.IsSortedFunc(h.chunks, byMin) {
		slices.SortStableFunc(h.chunks, byMin)
	}
	h.reach = slices.Grow(h.reach[:0], len(h.chunks))
	reach := int64(-1)
	for i := range h.chunks {
		reach = max(reach, h.chunks[i].max)
		h.reach = append(h.reach, reach)
	}
}

// trim forgets all but the chunks that reach farthest.
func (h *hourState) trim() {
	if len(h.chunks) <= maxRecent {
		return
	}
	slices.SortStableFunc(h.chunks, func(a, b span) int { return cmp.Compare(b.max, a.max) })
	for i := keepRecent; i < len(h.chunks); i++ {
		h.floor = max(h.floor, h.chunks[i].max)
	}
	h.chunks = slices.Clone(h.chunks[:keepRecent])
	h.seal()
}

// over calls each for the chunks that reach over off until it returns false.
// It must only be asked above the floor.
func (h *hourState) over(off int64, each func(s *span) bool) {
	i, _ := slices.BinarySearchFunc(h.chunks, off, func(s span, off int64) int {
		if s.min <= off {
			return -1
		}
		return 1
	})
	for i--; i >= 0 && h.reach[i] >= off; i-- {
		if h.chunks[i].max >= off && !each(&h.chunks[i]) {
			return
		}
	}
}

// hour returns the state of an hour, from the cache or the store.
func (w *Writer) hour(txn *badger.Txn, endpoint string, h int64) (*hourState, error) {
	key := cacheKey{id: chunkID{endpoint: endpoint, hour: h}}
	if v, ok := w.cache.get(key); ok {
		return v.(*hourState), nil
	}
	state, err := w.loadHour(txn, endpoint, h)
	if err != nil {
		return nil, err
	}
	w.cache.put(key, state)
	return state, nil
}

// loadHour reads the state of an hour with all its chunks.
func (w *Writer) loadHour(txn *badger.Txn, endpoint string, h int64) (*hourState, error) {
	state := newHourState()
	it := txn.NewIterator(badger.IteratorOptions{Prefix: hourKey(w.kind, endpoint, h)})
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		s, err := parseIndexKey(it.Item().Key(), endpoint)
		if err != nil {
			return nil, err
		}
		state.add(s)
	}
	state.seal()
	_, err := txn.Get(freshKey(w.kind, endpoint, h))
	if state.marked = err == nil; err != nil && !errors.Is(err, badger.ErrKeyNotFound) {
		return nil, err
	}
	return state, nil
}

// inChunk tells whether a chunk has a line, which is not to be swept.
func (w *Writer) inChunk(txn *badger.Txn, s *span, off int64, hash event.Hash) (has bool, err error) {
	set, err := w.hashes(txn, s)
	if err != nil {
		return false, fmt.Errorf("hashes of a chunk: %w", err)
	}
	if set.tagged {
		if known, err := w.tags.load(false); err != nil || !known {
			return false, errors.Join(err, errTags)
		}
		hash = timedTag(w.tags.tag(hash), off)
	}
	_, has = set.set[hash]
	return has, nil
}

// hashes returns the hashes of a chunk, from the cache or the store, none where
// it is to be swept. Of a merged chunk, lines are swept one by one.
func (w *Writer) hashes(txn *badger.Txn, s *span) (*hashSet, error) {
	key := cacheKey{id: s.id, hashes: true}
	swept := w.swept.Load()
	var set *hashSet
	if v, ok := w.cache.get(key); ok {
		set = v.(*hashSet)
	}
	if set == nil || set.tagged && set.first < swept {
		var err error
		if set, err = w.loadHashes(txn, s, swept); err != nil {
			return nil, err
		}
		w.cache.put(key, set)
	}
	if set.last < swept {
		return &hashSet{}, nil
	}
	return set, nil
}

func (w *Writer) loadHashes(txn *badger.Txn, s *span, swept uint64) (*hashSet, error) {
	set := &hashSet{first: math.MaxUint64}
	item, err := txn.Get(s.indexKey(w.kind))
	if errors.Is(err, badger.ErrKeyNotFound) {
		return set, nil // swept
	} else if err != nil {
		return nil, err
	}
	return set, item.Value(func(b []byte) error {
		r, err := newIndexReader(b)
		if err != nil {
			return err
		}
		set.set, set.tagged = make(map[event.Hash]struct{}, r.lines()), r.merged()
		for r.next() {
			l := &r.last
			if set.tagged && l.arrival < swept {
				continue
			}
			if set.tagged {
				l.hash = timedTag(l.hash, l.off)
			}
			set.set[l.hash] = struct{}{}
			set.first, set.last = min(set.first, l.arrival), max(set.last, l.arrival)
		}
		return r.err
	})
}

// hasKey tells whether the store has a line's hash as a key, of a line that is
// not to be swept.
func (w *Writer) hasKey(txn *badger.Txn, endpoint string, hash event.Hash) (has bool, err error) {
	item, err := txn.Get(hashKey(w.kind, endpoint, hash))
	if errors.Is(err, badger.ErrKeyNotFound) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	return has, item.Value(func(b []byte) error {
		has = arrivalOf(b) >= w.swept.Load()
		return nil
	})
}
