package logstore

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/store"
)

// Bounds of a chunk. A line longer than maxChunkBytes is a chunk alone.
const (
	maxChunkLines = 2000
	maxChunkBytes = 1 << 20
)

// keptEntries is for how many lines of an hour room is kept for the next one.
const keptEntries = 8192

// errWritten means that a line came too late for its transaction.
var errWritten = errors.New("the hour of the line is written already")

// ArrivalBits is how many bits of a line's arrival number the lines of its
// message; those above are the message's sequence in its stream.
const ArrivalBits = 9

// Entry is a line to store.
type Entry struct {
	Endpoint string
	// Time is where the line stands. Timed is false when it is not the
	// line's own time, so that the same line may come with another one.
	Time  time.Time
	Timed bool
	// Hash identifies the line among those of its endpoint and kind.
	Hash event.Hash
	// Arrival orders lines of the same time. Sweep deletes lines by it.
	Arrival uint64
	// Line has no line ending. It must stay as it is until Write returns.
	Line []byte
	// Frame, if not nil, has the line as number At of its lines.
	Frame *Frame
	At    int
}

// Frame is some lines compressed, each ended by a newline, as message.Compress
// does it. A chunk of whole frames is stored as they are.
type Frame struct {
	Packed []byte
	Lines  int
}

// entry is a line of a batch.
type entry struct {
	pos   Pos
	hash  event.Hash
	timed bool
	line  []byte
	frame *Frame
	at    int
}

// Writer stores lines of one kind. One goroutine at a time may use it, beside
// one that calls Sweep, and nobody else may write lines of this kind to the
// store.
type Writer struct {
	db    *store.DB
	kind  Kind
	cache *cache
	tags  *tagger
	// merging is the hour that Merge has in hand; touched tells that lines of it
	// were written meanwhile.
	merging hourID
	touched bool
	// swept is the arrival below which lines are no repetitions any more.
	swept atomic.Uint64
	// raw are the lines of the chunk in hand.
	raw []byte
	// spare is room for the lines of the next hour, once those of one are written.
	spare []entry
}

// NewWriter returns a writer that keeps at most about cacheBytes in memory
// between batches.
func NewWriter(db *store.DB, kind Kind, cacheBytes int) *Writer {
	return &Writer{db: db, kind: kind, cache: newCache(cacheBytes), tags: &tagger{db: db}}
}

// Batch is what one transaction adds.
type Batch struct {
	w     *Writer
	read  *badger.Txn
	first uint64
	hours map[hourID]*pendingHour
	last  *pendingHour
	// unwritten are the hours with lines for the next Write.
	unwritten []*pendingHour
	untimed   map[untimedID]struct{}
	// Stored, Repeated, Untimed and Chunks count the lines to be stored, the
	// repetitions passed over, those without a time of their own among the
	// stored ones, and the chunks written.
	Stored, Repeated, Untimed, Chunks int
}

type hourID struct {
	endpoint string
	hour     int64
}

type untimedID struct {
	endpoint string
	hash     event.Hash
}

// pendingHour is what a batch adds to an hour.
type pendingHour struct {
	id    hourID
	state *hourState
	// whole tells that state knows all chunks because they were asked for.
	whole   bool
	entries []entry
	// written tells that entries were written, after which no more may come.
	written bool
	// max is the greatest time of state and entries together.
	max int64
	// own are the hashes of entries, made when first needed.
	own    map[event.Hash]struct{}
	chunks []span
}

// Begin starts a batch. Its first message has sequence first in its stream,
// which no other batch of this writer may have, and no line of an earlier one
// is added. Close must be called.
func (w *Writer) Begin(first uint64) *Batch {
	return &Batch{w: w, read: w.db.NewTransaction(false), first: first, hours: map[hourID]*pendingHour{}, untimed: map[untimedID]struct{}{}}
}

// Close releases what the batch holds. It may be called at any time.
func (b *Batch) Close() { b.read.Discard() }

// Add adds a line to the batch unless the endpoint has sent it before, and
// tells whether it did. badger.ErrTxnTooBig means that the batch cannot be
// written in one transaction.
func (b *Batch) Add(e *Entry) (bool, error) {
	if e.Endpoint == "" || len(e.Endpoint) > MaxEndpoint {
		return false, ErrEndpoint
	}
	pos := At(e.Time, e.Arrival)
	p, err := b.hour(hourID{e.Endpoint, pos.Hour})
	if err != nil {
		return false, fmt.Errorf("hour of a line: %w", err)
	}
	if p.written {
		return false, errWritten
	}
	repeated := false
	if e.Timed {
		repeated, err = b.repeatedTimed(p, pos.Off, e.Hash)
	} else {
		id := untimedID{e.Endpoint, e.Hash}
		if _, repeated = b.untimed[id]; !repeated {
			if repeated, err = b.w.hasKey(b.read, e.Endpoint, e.Hash); !repeated {
				b.untimed[id] = struct{}{}
			}
		}
	}
	if err != nil {
		return false, fmt.Errorf("look for a repetition: %w", err)
	}
	if repeated {
		b.Repeated++
		return false, nil
	}
	b.Stored++
	if !e.Timed {
		b.Untimed++
	}
	if int64(len(b.untimed)) >= b.w.db.MaxBatchCount() {
		return false, badger.ErrTxnTooBig // its keys alone are too many
	}
	if p.own != nil {
		p.own[e.Hash] = struct{}{}
	}
	p.max = max(p.max, pos.Off)
	if len(p.entries) == 0 {
		b.unwritten = append(b.unwritten, p)
		p.entries, b.w.spare = b.w.spare, nil
	}
	p.entries = append(p.entries, entry{pos: pos, hash: e.Hash, timed: e.Timed, line: e.Line, frame: e.Frame, at: e.At})
	return true, nil
}

func (b *Batch) hour(id hourID) (*pendingHour, error) {
	if b.last != nil && b.last.id == id {
		return b.last, nil
	}
	p := b.hours[id]
	if p == nil {
		state, err := b.w.hour(b.read, id.endpoint, id.hour)
		if err != nil {
			return nil, err
		}
		p = &pendingHour{id: id, state: state, max: state.max}
		b.hours[id] = p
	}
	b.last = p
	return p, nil
}

// complete makes the state know all chunks that reach over off.
func (b *Batch) complete(p *pendingHour, off int64) error {
	if off > p.state.floor {
		return nil
	}
	state, err := b.w.loadHour(b.read, p.id.endpoint, p.id.hour)
	if err != nil {
		return err
	}
	p.state, p.whole = state, true
	return nil
}

func (b *Batch) repeatedTimed(p *pendingHour, off int64, hash event.Hash) (bool, error) {
	if off > p.max {
		return false, nil
	}
	if len(p.entries) > 0 {
		if p.own == nil {
			p.own = make(map[event.Hash]struct{}, 2*len(p.entries))
			for i := range p.entries {
				p.own[p.entries[i].hash] = struct{}{}
			}
		}
		if _, ok := p.own[hash]; ok {
			return true, nil
		}
	}
	if off > p.state.max {
		return false, nil
	}
	if err := b.complete(p, off); err != nil {
		return false, err
	}
	found := false
	var err error
	p.state.over(off, func(s *span) bool {
		found, err = b.w.inChunk(b.read, s, off, hash)
		return err == nil && !found
	})
	if err != nil || found {
		return found, err
	}
	if off <= p.state.keyedMax && off >= p.state.keyedMin {
		return b.w.hasKey(b.read, p.id.endpoint, hash)
	}
	return false, nil
}

// Write writes into txn what was added since the last Write, after which none of
// the lines is needed any more. More lines of the same hours may not be added. An
// error of Badger, such as badger.ErrTxnTooBig, is wrapped.
func (b *Batch) Write(txn *badger.Txn) error {
	for _, p := range b.unwritten {
		slices.SortFunc(p.entries, byPos)
		for rest := p.entries; len(rest) > 0; {
			n, _ := chunkOf(rest)
			n = wholeFrames(rest, n)
			if err := b.writeChunk(txn, p, rest[:n]); err != nil {
				return err
			}
			rest = rest[n:]
		}
		if !p.state.marked {
			if err := txn.Set(freshKey(b.w.kind, p.id.endpoint, p.id.hour), nil); err != nil {
				return fmt.Errorf("mark of an hour: %w", err)
			}
		}
		clear(p.entries) // they hold lines
		if cap(p.entries) <= keptEntries {
			b.w.spare = p.entries[:0]
		}
		p.entries, p.own, p.written = nil, nil, true
	}
	b.unwritten = b.unwritten[:0]
	return nil
}

// wholeFrames cuts the frame off the first n lines that is not whole in them,
// where less than half of them are lost by that.
func wholeFrames(lines []entry, n int) int {
	for m := n; m > n/2 && m < len(lines) && lines[m].frame != nil; m-- {
		if lines[m].at == 0 {
			return m
		}
	}
	return n
}

// pack returns the body of a chunk.
func (w *Writer) pack(lines []entry) []byte {
	if frames := framesOf(lines); frames != nil {
		return slices.Concat(frames...)
	}
	w.raw = w.raw[:0]
	for i := range lines {
		w.raw = append(append(w.raw, lines[i].line...), '\n')
	}
	return message.Compressed(w.raw)
}

// framesOf returns the frames that lines are, nil when they are not.
func framesOf(lines []entry) (frames [][]byte) {
	for len(lines) > 0 {
		f := lines[0].frame
		if f == nil || f.Lines > len(lines) {
			return nil
		}
		for i := range lines[:f.Lines] {
			if lines[i].frame != f || lines[i].at != i {
				return nil
			}
		}
		frames, lines = append(frames, f.Packed), lines[f.Lines:]
	}
	return frames
}

// byPos orders lines of an hour.
func byPos(x, y entry) int {
	return cmp.Or(cmp.Compare(x.pos.Off, y.pos.Off), cmp.Compare(x.pos.Arrival, y.pos.Arrival))
}

// chunkOf returns how many of the first lines make a chunk, and their size.
func chunkOf(lines []entry) (n, size int) {
	n, size = 1, len(lines[0].line)+1
	for n < len(lines) && n < maxChunkLines && size+len(lines[n].line)+1 <= maxChunkBytes {
		size += len(lines[n].line) + 1
		n++
	}
	return n, size
}

func (b *Batch) writeChunk(txn *badger.Txn, p *pendingHour, lines []entry) error {
	if len(p.chunks) > math.MaxUint16 {
		return badger.ErrTxnTooBig // fewer messages at once make fewer chunks
	}
	s := span{
		id:  chunkID{endpoint: p.id.endpoint, hour: p.id.hour, first: b.first, sub: uint16(len(p.chunks))},
		min: lines[0].pos.Off, max: lines[len(lines)-1].pos.Off, count: uint32(len(lines)),
	}
	if err := b.complete(p, s.min); err != nil {
		return err
	}
	s.keyed = crowded(p, &s)
	for i := range lines {
		l := &lines[i]
		if l.timed && !s.keyed {
			continue
		}
		arrival := binary.BigEndian.AppendUint64(nil, l.pos.Arrival)
		if err := txn.Set(hashKey(b.w.kind, p.id.endpoint, l.hash), arrival); err != nil {
			return fmt.Errorf("hash of a line: %w", err)
		}
	}
	// The transaction keeps the values until it is committed.
	index := appendIndex(make([]byte, 0, len(lines)*(minIndexed+4)+8), lines)
	err := txn.Set(s.indexKey(b.w.kind), index)
	if err == nil {
		err = txn.Set(s.id.bodyKey(b.w.kind), b.w.pack(lines))
	}
	if err != nil {
		return fmt.Errorf("chunk: %w", err)
	}
	p.chunks = append(p.chunks, s)
	b.Chunks++
	return nil
}

// crowded tells whether as many chunks as are allowed lie over s already.
func crowded(p *pendingHour, s *span) bool {
	n := 0
	for _, list := range [][]span{p.state.chunks, p.chunks} {
		for i := range list {
			if !list[i].keyed && list[i].min <= s.max && list[i].max >= s.min {
				if n++; n >= crowd {
					return true
				}
			}
		}
	}
	return false
}

// Committed tells the writer that the transaction of the batch is committed.
func (b *Batch) Committed() {
	for id, p := range b.hours {
		if len(p.chunks) == 0 {
			continue
		}
		state := p.state.clone()
		for _, s := range p.chunks {
			state.add(s)
		}
		state.seal()
		if !p.whole {
			state.trim()
		}
		state.marked, state.written = true, time.Now()
		if id == b.w.merging {
			b.w.touched = true
		}
		b.w.cache.put(cacheKey{id: chunkID{endpoint: id.endpoint, hour: id.hour}}, state)
	}
}
