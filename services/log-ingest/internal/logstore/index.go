package logstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
)

// errIndex means that the index of a chunk is damaged.
var errIndex = errors.New("malformed index of a chunk")

const (
	indexVersion = 1
	hashSize     = len(event.Hash{})
	// minIndexed is the least that an index spends on a line.
	minIndexed = hashSize + 3
)

// IndexBytes is about what the index of a chunk spends on a line.
const IndexBytes = 24

// indexed is what an index says of a line.
type indexed struct {
	// off is the line's time, in nanoseconds within the chunk's hour.
	off     int64
	arrival uint64
	hash    event.Hash
	// from is where the line starts in the body, size its length with the
	// newline.
	from, size uint32
}

// appendIndex appends the index of lines, which are sorted: a version, the
// count, all hashes, and for each line the distance of its time and of its
// arrival from those of the line before, and its length.
func appendIndex(b []byte, lines []entry) []byte {
	b = append(b, indexVersion)
	b = binary.AppendUvarint(b, uint64(len(lines)))
	for i := range lines {
		b = append(b, lines[i].hash[:]...)
	}
	var off int64
	var arrival uint64
	for i := range lines {
		l := &lines[i]
		b = binary.AppendUvarint(b, uint64(l.pos.Off-off))
		b = binary.AppendVarint(b, int64(l.pos.Arrival-arrival))
		b = binary.AppendUvarint(b, uint64(len(l.line)+1))
		off, arrival = l.pos.Off, l.pos.Arrival
	}
	return b
}

// indexReader walks over an index. It allocates nothing.
type indexReader struct {
	hashes, rest []byte
	last         indexed
	err          error
}

// newIndexReader reads the head of an index.
func newIndexReader(b []byte) (indexReader, error) {
	if len(b) == 0 || b[0] != indexVersion {
		return indexReader{}, fmt.Errorf("%w: unknown version", errIndex)
	}
	count, n := binary.Uvarint(b[1:])
	if n <= 0 || count > uint64(len(b)/minIndexed) {
		return indexReader{}, fmt.Errorf("%w: count", errIndex)
	}
	b = b[1+n:]
	if int(count)*hashSize > len(b) {
		return indexReader{}, fmt.Errorf("%w: cut off", errIndex)
	}
	return indexReader{hashes: b[:int(count)*hashSize], rest: b[int(count)*hashSize:]}, nil
}

// next reads the next line into r.last and tells whether there is one; r.err
// tells at the end whether the index was whole.
func (r *indexReader) next() bool {
	if r.err != nil || len(r.hashes) == 0 {
		if r.err == nil && len(r.rest) > 0 {
			r.err = fmt.Errorf("%w: %d bytes too many", errIndex, len(r.rest))
		}
		return false
	}
	off, n := binary.Uvarint(r.rest)
	if n <= 0 || off >= uint64(hourLength) || r.last.off+int64(off) >= hourLength {
		return r.fail("time")
	}
	r.rest = r.rest[n:]
	arrival, n := binary.Varint(r.rest)
	if n <= 0 {
		return r.fail("arrival")
	}
	r.rest = r.rest[n:]
	size, n := binary.Uvarint(r.rest)
	from := uint64(r.last.from) + uint64(r.last.size)
	if n <= 0 || size == 0 || size > math.MaxInt32 || from+size > math.MaxInt32 {
		return r.fail("length")
	}
	r.rest = r.rest[n:]
	r.last = indexed{
		off: r.last.off + int64(off), arrival: r.last.arrival + uint64(arrival),
		hash: event.Hash(r.hashes[:hashSize]), from: uint32(from), size: uint32(size),
	}
	r.hashes = r.hashes[hashSize:]
	return true
}

func (r *indexReader) fail(what string) bool {
	r.err = fmt.Errorf("%w: %s", errIndex, what)
	return false
}
