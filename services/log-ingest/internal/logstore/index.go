package logstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
)

// errIndex means that the index of a chunk is damaged.
var errIndex = errors.New("malformed index of a chunk")

const (
	indexVersion = 1
	// indexMerged is the version of the index of a merged chunk, which has
	// tags in place of hashes and the rest compressed.
	indexMerged = 2
	hashSize    = len(event.Hash{})
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
	// hash is the line's hash or, in a merged chunk, its tag.
	hash event.Hash
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
	return appendPlaces(b, lines)
}

// appendMergedIndex appends the index of lines of a merged chunk, whose hashes
// are tags.
func appendMergedIndex(b []byte, lines []entry) []byte {
	b = append(b, indexMerged)
	b = binary.AppendUvarint(b, uint64(len(lines)))
	for i := range lines {
		b = append(b, lines[i].hash[:tagSize]...)
	}
	return message.Compress(b, appendPlaces(nil, lines))
}

func appendPlaces(b []byte, lines []entry) []byte {
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

// indexReader walks over an index.
type indexReader struct {
	hashes, rest []byte
	// width is the length of a hash.
	width int
	last  indexed
	err   error
}

// merged tells that the index is that of a merged chunk.
func (r *indexReader) merged() bool { return r.width == tagSize }

// newIndexReader reads the head of an index.
func newIndexReader(b []byte) (indexReader, error) {
	if len(b) == 0 || b[0] != indexVersion && b[0] != indexMerged {
		return indexReader{}, fmt.Errorf("%w: unknown version", errIndex)
	}
	r := indexReader{width: hashSize}
	if b[0] == indexMerged {
		r.width = tagSize
	}
	count, n := binary.Uvarint(b[1:])
	if n <= 0 || count > uint64(len(b)/r.width) {
		return indexReader{}, fmt.Errorf("%w: count", errIndex)
	}
	b = b[1+n:]
	if int(count)*r.width > len(b) {
		return indexReader{}, fmt.Errorf("%w: cut off", errIndex)
	}
	r.hashes, r.rest = b[:int(count)*r.width], b[int(count)*r.width:]
	if r.merged() {
		var err error
		if r.rest, err = message.Decompress(nil, r.rest); err != nil {
			return indexReader{}, fmt.Errorf("%w: %w", errIndex, err)
		}
	}
	return r, nil
}

// lines is how many lines are still to come.
func (r *indexReader) lines() int { return len(r.hashes) / r.width }

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
		from: uint32(from), size: uint32(size),
	}
	copy(r.last.hash[:], r.hashes[:r.width])
	r.hashes = r.hashes[r.width:]
	return true
}

func (r *indexReader) fail(what string) bool {
	r.err = fmt.Errorf("%w: %s", errIndex, what)
	return false
}
