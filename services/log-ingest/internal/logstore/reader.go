package logstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/store"
)

// Bounds of a page. A line longer than MaxPageBytes is a page alone.
const (
	MaxPageLines = 1 << 16
	MaxPageBytes = 1 << 20
)

// Bounds of what is given as it is stored: more than a page needs it to be where
// its lines lie close together, and less than a message may have.
const (
	maxPackedBodies = 32
	maxPackedBytes  = 3 << 20
)

var (
	errBody = errors.New("body of a chunk does not match its index")
	errTags = errors.New("a merged chunk in a store without a key of tags")
)

// Query asks for a page of an endpoint's lines.
type Query struct {
	Endpoint string
	Kind     Kind
	// After and Before bound the lines, both exclusive.
	After, Before Pos
	// Skip passes over that many lines first.
	Skip int
	// Limit bounds the lines of the page, 0 for as many as a page holds.
	Limit int
	// Detections gives, in place of an event that is also an alert, the
	// alert's line.
	Detections bool
	// Packed asks for the lines as they are stored.
	Packed bool
}

// Between sets the bounds to times, exclusive; a zero time is an open bound.
func (q *Query) Between(start, stop time.Time) {
	q.After, q.Before = Beginning(), End()
	if !start.IsZero() {
		q.After = At(start, math.MaxUint64)
	}
	if !stop.IsZero() {
		q.Before = At(stop, 0)
	}
}

// Page is an answer to a Query.
type Page struct {
	// Lines are the lines in order, each ended by a newline.
	Lines []byte
	// Packed has the lines in their stead, as message.OpenPage reads them, where
	// the query asks for that and few bodies hold them.
	Packed []byte
	// Count is the number of lines, Size their bytes.
	Count, Size int
	// Last is the position of the last line; More tells that there are lines
	// behind it, which a Query with After set to Last finds.
	Last Pos
	More bool
}

// Reader answers queries. It is safe for concurrent use; what it keeps in
// memory is bounded by the size of a page, whatever the chunks look like.
type Reader struct {
	db   *store.DB
	tags *tagger
}

// NewReader returns a reader of a store.
func NewReader(db *store.DB) *Reader { return &Reader{db: db, tags: &tagger{db: db}} }

// Page returns a page. It ends early with the error of ctx.
func (r *Reader) Page(ctx context.Context, q Query) (Page, error) {
	if q.Endpoint == "" || len(q.Endpoint) > MaxEndpoint {
		return Page{}, ErrEndpoint
	}
	txn := r.db.NewTransaction(false)
	defer txn.Discard()
	for q.Skip > 0 {
		skipped := selection{maxItems: min(q.Skip, MaxPageLines), maxBytes: math.MaxInt}
		if err := pick(ctx, txn, &q, &skipped); err != nil {
			return Page{}, err
		}
		if !skipped.cut {
			return Page{}, nil
		}
		q.After = skipped.items[0].pos
		q.Skip -= len(skipped.items)
	}
	s := selection{maxItems: MaxPageLines, maxBytes: MaxPageBytes}
	if q.Limit > 0 {
		s.maxItems = min(q.Limit, MaxPageLines)
	}
	if err := pick(ctx, txn, &q, &s); err != nil {
		return Page{}, err
	}
	items := s.sorted()
	if len(items) == 0 {
		return Page{}, nil
	}
	page := Page{More: s.cut}
	if page.More && q.Limit == 0 {
		items = wholeChunks(items)
	}
	if q.Detections {
		if err := r.detections(ctx, txn, q.Endpoint, items); err != nil {
			return Page{}, err
		}
		size := int(items[0].size)
		for i := 1; i < len(items); i++ {
			if size += int(items[i].size); size > MaxPageBytes {
				items, page.More = items[:i], true
				break
			}
		}
	}
	page.Count, page.Last = len(items), items[len(items)-1].pos
	pieces, size := arrange(items)
	page.Size = size
	var err error
	if q.Packed {
		if page.Packed, err = packed(ctx, txn, q.Endpoint, pieces, size); err != nil || page.Packed != nil {
			return page, err
		}
	}
	page.Lines, err = lines(ctx, txn, q.Endpoint, pieces, size)
	return page, err
}

// wholeChunks cuts the end off a page of items that begins a chunk and does not
// end it, unless little would be left: that chunk is opened for the next page in
// any case.
func wholeChunks(items []item) []item {
	last := &items[len(items)-1]
	from, rest := len(items), 0
	for i := range items {
		if !items[i].sameBody(last) {
			rest += int(items[i].size)
			if from < i {
				return items // among lines of others
			}
		} else if from == len(items) {
			from = i
		}
	}
	if len(items)-from == int(last.count) || rest < MaxPageBytes/2 {
		return items
	}
	return items[:from]
}

// walk calls each for the chunks of a kind that may hold lines between after
// and before, by their first time, until it returns false.
func walk(ctx context.Context, txn *badger.Txn, kind Kind, endpoint string, after, before Pos, each func(s *span, index *indexReader) (bool, error)) error {
	opts := badger.IteratorOptions{Prefix: appendPrefix(nil, prefixIndex, kind, endpoint)}
	it := txn.NewIterator(opts)
	defer it.Close()
	for it.Seek(hourKey(kind, endpoint, after.Hour)); it.Valid(); it.Next() {
		if err := ctx.Err(); err != nil {
			return err
		}
		s, err := parseIndexKey(it.Item().Key(), endpoint)
		if err != nil {
			return err
		}
		if (Pos{Hour: s.id.hour, Off: s.min}).Compare(before) >= 0 {
			return nil
		}
		if s.id.hour == after.Hour && s.max < after.Off {
			continue
		}
		more := false
		err = it.Item().Value(func(b []byte) error {
			index, err := newIndexReader(b)
			if err != nil {
				return err
			}
			if more, err = each(&s, &index); err != nil {
				return err
			}
			return index.err
		})
		if err != nil {
			return fmt.Errorf("chunk of hour %d: %w", s.id.hour, err)
		}
		if !more {
			return nil
		}
	}
	return nil
}

// pick offers the lines of a query to a selection.
func pick(ctx context.Context, txn *badger.Txn, q *Query, into *selection) error {
	return walk(ctx, txn, q.Kind, q.Endpoint, q.After, q.Before, func(s *span, index *indexReader) (bool, error) {
		if into.ends(Pos{Hour: s.id.hour, Off: s.min}) {
			return false, nil
		}
		line := item{kind: q.Kind, first: s.id.first, sub: s.id.sub, count: s.count}
		line.pos.Hour = s.id.hour
		for index.next() {
			l := &index.last
			line.pos.Off, line.pos.Arrival = l.off, l.arrival
			if line.pos.Compare(q.After) <= 0 {
				continue
			}
			if line.pos.Compare(q.Before) >= 0 {
				break
			}
			line.hash, line.tagged, line.from, line.size = l.hash, index.merged(), l.from, l.size
			if !into.offer(&line) {
				break
			}
		}
		return true, nil
	})
}

// detections lets items that are also alerts point at the alert's line.
func (r *Reader) detections(ctx context.Context, txn *badger.Txn, endpoint string, items []item) error {
	after, before := items[0].pos, items[len(items)-1].pos
	after.Arrival, before.Arrival = 0, math.MaxUint64
	// By hashes and, in a store with merged chunks, by tags.
	var byHash map[event.Hash]*item
	tags, err := r.tags.load(false)
	if err != nil {
		return err
	}
	return walk(ctx, txn, Alerts, endpoint, after, before, func(s *span, index *indexReader) (bool, error) {
		for index.next() {
			l := &index.last
			at := Pos{Hour: s.id.hour, Off: l.off}
			if at.Hour == after.Hour && at.Off < after.Off {
				continue
			}
			if at.Compare(before) > 0 {
				break
			}
			if byHash == nil {
				byHash = make(map[event.Hash]*item, len(items))
				for i := range items {
					byHash[items[i].hash] = &items[i]
					if tags && !items[i].tagged {
						byHash[r.tags.tag(items[i].hash)] = &items[i]
					}
				}
			}
			it := byHash[l.hash]
			if it == nil && tags && !index.merged() {
				it = byHash[r.tags.tag(l.hash)]
			}
			if it != nil && it.pos.sameTime(at) {
				it.kind, it.first, it.sub, it.from, it.size = Alerts, s.id.first, s.id.sub, l.from, l.size
			}
		}
		return true, nil
	})
}

// bodies are buffers for bodies of chunks that a reader has in hand.
var bodies = sync.Pool{New: func() any { return new([]byte) }}

// piece is an item and where it stands in its page.
type piece struct {
	*item
	at int
}

// sameBody tells whether two items are lines of the same chunk.
func (it *item) sameBody(o *item) bool {
	return it.kind == o.kind && it.pos.Hour == o.pos.Hour && it.first == o.first && it.sub == o.sub
}

// arrange returns items by the bodies that hold them, and the size of all.
func arrange(items []item) (pieces []piece, size int) {
	pieces = make([]piece, len(items))
	for i := range items {
		pieces[i] = piece{&items[i], size}
		size += int(items[i].size)
	}
	slices.SortStableFunc(pieces, func(a, b piece) int {
		return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.pos.Hour, b.pos.Hour), cmp.Compare(a.first, b.first), cmp.Compare(a.sub, b.sub))
	})
	return pieces, size
}

// cutBody returns the pieces at the head that the same body holds, and the rest.
func cutBody(pieces []piece) (head, rest []piece) {
	n := 1
	for n < len(pieces) && pieces[n].sameBody(pieces[0].item) {
		n++
	}
	return pieces[:n], pieces[n:]
}

// body reads the body that holds a piece.
func body(ctx context.Context, txn *badger.Txn, endpoint string, p *piece, read func([]byte) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	id := chunkID{endpoint: endpoint, hour: p.pos.Hour, first: p.first, sub: p.sub}
	entry, err := txn.Get(id.bodyKey(p.kind))
	if err == nil {
		err = entry.Value(read)
	}
	if err != nil {
		return fmt.Errorf("body of a chunk: %w", err)
	}
	return nil
}

// lines returns the lines of pieces. It opens one body at a time.
func lines(ctx context.Context, txn *badger.Txn, endpoint string, pieces []piece, size int) ([]byte, error) {
	out := make([]byte, size)
	buf := bodies.Get().(*[]byte)
	text := *buf
	defer func() {
		if cap(text) <= 2*maxChunkBytes { // not that of a single long line
			*buf = text
		}
		bodies.Put(buf)
	}()
	for len(pieces) > 0 {
		var same []piece
		same, pieces = cutBody(pieces)
		err := body(ctx, txn, endpoint, &same[0], func(b []byte) (err error) {
			text, err = message.Decompress(text[:0], b)
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, p := range same {
			if int(p.from)+int(p.size) > len(text) {
				return nil, errBody
			}
			copy(out[p.at:], text[p.from:p.from+p.size])
		}
	}
	return out, nil
}

// packed returns the page of pieces with the bodies as they are stored, nil when
// they are too many or too large.
func packed(ctx context.Context, txn *badger.Txn, endpoint string, pieces []piece, size int) ([]byte, error) {
	count := 0
	for rest := pieces; len(rest) > 0; count++ {
		_, rest = cutBody(rest)
	}
	if count > maxPackedBodies {
		return nil, nil
	}
	out := message.AppendPage(make([]byte, 0, size/8), size, count)
	var runs []message.PageRun
	for len(pieces) > 0 {
		var same []piece
		same, pieces = cutBody(pieces)
		runs = runs[:0]
		for _, p := range same {
			run := message.PageRun{From: int(p.from), Size: int(p.size), At: p.at}
			if n := len(runs) - 1; n >= 0 && runs[n].From+runs[n].Size == run.From && runs[n].At+runs[n].Size == run.At {
				runs[n].Size += run.Size
			} else {
				runs = append(runs, run)
			}
		}
		err := body(ctx, txn, endpoint, &same[0], func(b []byte) error {
			if len(out)+len(b) <= maxPackedBytes {
				out = message.AppendPageBody(out, b, runs)
			} else {
				out = nil
			}
			return nil
		})
		if err != nil || out == nil {
			return nil, err
		}
	}
	return out, nil
}
