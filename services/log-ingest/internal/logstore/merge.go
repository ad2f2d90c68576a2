package logstore

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/klauspost/compress/zstd"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/failpoint"
)

// mergeLevel compresses merged chunks.
const mergeLevel = zstd.SpeedDefault

const (
	// An hour to which nothing has come for a while is merged when it has
	// mergeFresh chunks that were not, and with fewer when nothing has come for
	// mergeLate times as long: each time, a chunk that is not full is written
	// again.
	mergeFresh = 16
	mergeLate  = 20
	// Bounds of what one transaction merges: bytes of lines, lines, bytes of bodies,
	// chunks. A body of more than maxMergePacked stays as it is.
	maxMergeBytes  = 4 << 20
	maxMergeLines  = 20_000
	maxMergePacked = 512 << 10
	maxMergeChunks = 1000
	// mergeMarks is how many hours are looked at in one go.
	mergeMarks = 1000
)

// Merging tells how to merge.
type Merging struct {
	// Owns tells whether an endpoint is to be looked after.
	Owns func(endpoint string) bool
	// Exclusive calls a function while no batch is in hand.
	Exclusive func(func() error) error
	// Quiet is how long nothing must have come for an hour.
	Quiet time.Duration
	// Step is told how long the work on a transaction has taken, before the next
	// one is begun. Its error ends Merge.
	Step func(ctx context.Context, took time.Duration) error
	// Hours is how many hours to merge at most, 0 for all.
	Hours int
}

// Merged is what Merge has done.
type Merged struct {
	// Read and Written count the chunks.
	Read, Written int
	// More tells that Merging.Hours was too few for all that is due.
	More bool
}

// Merge joins the chunks of hours to which nothing comes any more into few that
// are full, compressed better, and with an index of a third the size. What
// readers and writers find does not change. Lines may be written and read, and
// Sweep and Forget be called meanwhile; Merge itself only once at a time.
func (w *Writer) Merge(ctx context.Context, m Merging) (done Merged, err error) {
	if _, err := w.tags.load(true); err != nil {
		return done, err
	}
	var own buffers
	merged := 0
	for from := []byte{prefixFresh, byte(w.kind)}; from != nil; {
		var hours []hourID
		if hours, from, err = w.freshHours(from, m.Owns); err != nil {
			return done, fmt.Errorf("look for hours to merge: %w", err)
		}
		for _, h := range w.due(hours, m) {
			if merged++; m.Hours > 0 && merged > m.Hours {
				done.More = true
				return done, nil
			}
			if err := w.mergeHour(ctx, m, h, &own, &done); err != nil {
				return done, fmt.Errorf("merge: %w", err)
			}
		}
	}
	return done, nil
}

// freshHours returns hours that have chunks which were not merged, and the key to
// go on from, nil at the end.
func (w *Writer) freshHours(from []byte, owns func(string) bool) (hours []hourID, next []byte, err error) {
	err = w.db.View(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: from[:2]})
		defer it.Close()
		for it.Seek(from); it.Valid(); it.Next() {
			key := it.Item().Key()
			if len(hours) == mergeMarks {
				next = slices.Clone(key)
				return nil
			}
			endpoint := endpointOf(key)
			if len(key) != 3+len(endpoint)+8 {
				return fmt.Errorf("%w: %d bytes", errKey, len(key))
			}
			if owns(endpoint) {
				hours = append(hours, hourID{endpoint, signed(key[3+len(endpoint):])})
			}
		}
		return nil
	})
	return hours, next, err
}

// due returns those of hours that are to be merged now. Of an hour that the cache
// does not know nobody has asked for long.
func (w *Writer) due(hours []hourID, m Merging) (due []hourID) {
	_ = m.Exclusive(func() error {
		for _, h := range hours {
			if v, ok := w.cache.peek(cacheKey{id: chunkID{endpoint: h.endpoint, hour: h.hour}}); ok {
				state := v.(*hourState)
				quiet := time.Since(state.written)
				if quiet < m.Quiet || quiet < mergeLate*m.Quiet && state.fresh < mergeFresh {
					continue
				}
			}
			due = append(due, h)
		}
		return nil
	})
	return due
}

// mergeHour merges the chunks of an hour.
func (w *Writer) mergeHour(ctx context.Context, m Merging, h hourID, own *buffers, done *Merged) (err error) {
	_ = m.Exclusive(func() error { w.merging, w.touched = h, false; return nil })
	for _, keyed := range []bool{false, true} {
		for from := hourKey(w.kind, h.endpoint, h.hour); from != nil; {
			if err := ctx.Err(); err != nil {
				return err
			}
			began := time.Now()
			from, err = w.mergeGroup(m, h, keyed, from, own, done)
			if errors.Is(err, badger.ErrConflict) {
				return nil // swept or removed meanwhile: another time
			} else if err != nil {
				return err
			}
			if err := m.Step(ctx, time.Since(began)); err != nil {
				return err
			}
		}
	}
	return m.Exclusive(func() error {
		if w.merging = (hourID{}); w.touched {
			return nil // another time
		}
		w.cache.remove(cacheKey{id: chunkID{endpoint: h.endpoint, hour: h.hour}})
		return w.db.Update(func(txn *badger.Txn) error { return txn.Delete(freshKey(w.kind, h.endpoint, h.hour)) })
	})
}

// Waiting returns how many hours have chunks that were not merged.
func (r *Reader) Waiting(kind Kind) (n int, err error) {
	err = r.db.View(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte{prefixFresh, byte(kind)}})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			n++
		}
		return nil
	})
	return n, err
}

// buffers are some megabytes that one transaction leaves to the next.
type buffers struct {
	// text are the lines of the chunks that were read, joined those of the one
	// that is written.
	text, joined []byte
	// lines are those that are written.
	lines   []entry
	encoder *zstd.Encoder
}

// group begins a group.
func (b *buffers) group() *group {
	b.text, b.lines = b.text[:0], b.lines[:0]
	return &group{buffers: b}
}

// group is what a transaction writes anew.
type group struct {
	*buffers
	chunks []span
	// raw and packed are the sizes of the lines and of their bodies.
	raw, packed int
	// oldest is the sequence before which none of the lines came.
	oldest uint64
}

// mergeGroup merges the first chunks from a key on, in one transaction, and
// returns the key to go on from, nil at the end of the hour.
func (w *Writer) mergeGroup(m Merging, h hourID, keyed bool, from []byte, own *buffers, done *Merged) (next []byte, err error) {
	txn := w.db.NewTransaction(true)
	defer txn.Discard()
	g := own.group()
	since := w.swept.Load()
	if next, err = w.gather(txn, g, h, keyed, from, since); err != nil {
		return nil, err
	}
	if len(g.chunks) == 0 || len(g.chunks) == 1 && g.chunks[0].merged {
		return next, nil
	}
	written, err := w.rewrite(txn, g, since, m.Exclusive)
	if err != nil {
		return nil, err
	}
	done.Read += len(g.chunks)
	done.Written += len(written)
	if n := len(written); n > 0 && next != nil && !written[n-1].full {
		// It is merged with what follows.
		if key := written[n-1].indexKey(w.kind); string(key) < string(next) {
			next = key
		}
	}
	return next, nil
}

// gather reads chunks from a key on that are not full, up to the bounds of a
// group, and returns the key to go on from, nil at the end of the hour. Lines that
// arrived before since are to be swept and are left out.
func (w *Writer) gather(txn *badger.Txn, g *group, h hourID, keyed bool, from []byte, since uint64) (next []byte, err error) {
	it := txn.NewIterator(badger.IteratorOptions{Prefix: hourKey(w.kind, h.endpoint, h.hour)})
	defer it.Close()
	for it.Seek(from); it.Valid(); it.Next() {
		item := it.Item()
		s, err := parseIndexKey(item.Key(), h.endpoint)
		if err != nil {
			return nil, err
		}
		if s.full || s.keyed != keyed {
			continue
		}
		body, err := txn.Get(s.id.bodyKey(w.kind))
		if err != nil {
			return nil, fmt.Errorf("body of a chunk: %w", err)
		}
		size := int(body.ValueSize())
		if size > maxMergePacked {
			continue
		}
		if len(g.chunks) == maxMergeChunks || g.raw > maxMergeBytes || len(g.lines) > maxMergeLines || g.packed+size > maxMergePacked {
			return item.KeyCopy(nil), nil
		}
		g.packed += size
		if err := w.read(g, s, item, body, since); err != nil {
			return nil, fmt.Errorf("chunk of hour %d: %w", h.hour, err)
		}
	}
	return nil, nil
}

// read adds to a group the lines of a chunk that arrived from a moment on.
func (w *Writer) read(g *group, s span, index, body *badger.Item, since uint64) error {
	if g.text == nil {
		g.text = make([]byte, 0, maxMergeBytes+2*maxChunkBytes)
	}
	from := len(g.text)
	err := body.Value(func(b []byte) (err error) {
		g.text, err = message.Decompress(g.text, b)
		return err
	})
	if err != nil {
		return err
	}
	text := g.text[from:]
	if len(g.chunks) == 0 {
		g.oldest = s.id.first
	}
	g.oldest = min(g.oldest, s.id.first)
	g.chunks = append(g.chunks, s)
	return index.Value(func(b []byte) error {
		r, err := newIndexReader(b)
		if err != nil {
			return err
		}
		for r.next() {
			l := &r.last
			if int(l.from)+int(l.size) > len(text) {
				return errBody
			}
			if l.arrival < since {
				continue
			}
			if !r.merged() {
				l.hash = w.tags.tag(l.hash)
			}
			g.raw += int(l.size)
			g.lines = append(g.lines, entry{
				pos:  Pos{Hour: s.id.hour, Off: l.off, Arrival: l.arrival},
				hash: l.hash, line: text[l.from : l.from+l.size-1],
			})
		}
		return r.err
	})
}

// rewrite puts the lines of a group, those since an arrival, in place of its
// chunks, and commits. Where one of these has gone meanwhile, or more is to be
// swept, the error is badger.ErrConflict.
func (w *Writer) rewrite(txn *badger.Txn, g *group, since uint64, exclusive func(func() error) error) (written []span, err error) {
	id := chunkID{endpoint: g.chunks[0].id.endpoint, hour: g.chunks[0].id.hour, first: max(g.oldest, since>>ArrivalBits)}
	slices.SortFunc(g.lines, byPos)
	for rest := g.lines; len(rest) > 0; id.sub++ {
		if err := w.unused(txn, &id); err != nil {
			return nil, err
		}
		n, size := chunkOf(rest)
		s := span{id: id, min: rest[0].pos.Off, max: rest[n-1].pos.Off, count: uint32(n), keyed: g.chunks[0].keyed, merged: true,
			full: n < len(rest) || n >= maxChunkLines*7/8 || size >= maxChunkBytes*7/8}
		if err := w.writeMerged(txn, g, &s, rest[:n]); err != nil {
			return nil, err
		}
		written, rest = append(written, s), rest[n:]
	}
	for i := range g.chunks {
		if err := errors.Join(txn.Delete(g.chunks[i].indexKey(w.kind)), txn.Delete(g.chunks[i].id.bodyKey(w.kind))); err != nil {
			return nil, err
		}
	}
	return written, exclusive(func() error {
		if w.swept.Load() != since {
			return badger.ErrConflict
		}
		failpoint.HitIn(failpoint.MergeBeforeCommit, w.kind.String())
		if err := txn.Commit(); err != nil {
			return err
		}
		failpoint.HitIn(failpoint.MergeAfterCommit, w.kind.String())
		w.cache.remove(cacheKey{id: chunkID{endpoint: id.endpoint, hour: id.hour}})
		for i := range g.chunks {
			w.cache.remove(cacheKey{id: g.chunks[i].id, hashes: true})
		}
		return nil
	})
}

// writeMerged writes a chunk of lines whose hashes are tags.
func (w *Writer) writeMerged(txn *badger.Txn, g *group, s *span, lines []entry) (err error) {
	g.joined = g.joined[:0]
	for i := range lines {
		g.joined = append(append(g.joined, lines[i].line...), '\n')
	}
	if g.encoder == nil {
		g.encoder, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(mergeLevel), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(maxChunkBytes))
		if err != nil {
			return err
		}
	}
	// The transaction keeps the values until it is committed.
	body := g.encoder.EncodeAll(g.joined, make([]byte, 0, len(g.joined)/16))
	err = txn.Set(s.indexKey(w.kind), appendMergedIndex(nil, lines))
	if err == nil {
		err = txn.Set(s.id.bodyKey(w.kind), body)
	}
	return err
}

// unused makes id that of no chunk, from its number on. The commit is refused where
// another transaction takes it meanwhile.
func (w *Writer) unused(txn *badger.Txn, id *chunkID) error {
	for ; ; id.sub++ {
		_, err := txn.Get(id.bodyKey(w.kind))
		switch {
		case errors.Is(err, badger.ErrKeyNotFound):
			return nil
		case err != nil:
			return err
		case id.sub == math.MaxUint16:
			return fmt.Errorf("%d chunks of message %d", math.MaxUint16, id.first)
		}
	}
}
