package lines

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
)

// Long describes a line that is longer than the reader's limit.
type Long struct {
	// Head is the beginning of the line. It belongs to the caller.
	Head []byte
	// Size is the length of the whole line in bytes, without its ending.
	Size int64
	// SHA256 is the hash of the whole line, without its ending.
	SHA256 [sha256.Size]byte
}

// Limits bound what a Reader keeps in memory.
type Limits struct {
	// Line is the length in bytes of the longest line that is returned
	// whole, without its ending.
	Line int
	// Head is how much of a longer line is kept.
	Head int
	// Grow, if not nil, is asked before n more bytes are used for a line
	// that does not fit into the source's buffer. Its error ends the reading.
	Grow func(n int) error
}

// Reader splits text into lines. A line ends with a line feed, a carriage
// return before it belongs to the ending; the last line needs no ending.
// Lines of nothing but white space are passed over.
type Reader struct {
	src    *bufio.Reader
	limits Limits
	spill  []byte
}

// NewReader returns a Reader of what src gives.
func NewReader(src *bufio.Reader, limits Limits) *Reader {
	return &Reader{src: src, limits: limits}
}

// Next returns the next line without its ending, valid until the next call,
// or what is known of a line that is too long. At the end the error is
// io.EOF. Any other error is the source's, or that of Limits.Grow; the line
// in which it happened is not returned, not even in part.
func (r *Reader) Next() ([]byte, *Long, error) {
	for {
		line, long, err := r.next()
		if err != nil || long != nil || !blank(line) {
			return line, long, err
		}
	}
}

func (r *Reader) next() ([]byte, *Long, error) {
	part, err := r.src.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return r.assemble(part)
	}
	if err != nil && (!errors.Is(err, io.EOF) || len(part) == 0) {
		return nil, nil, err
	}
	return r.whole(part)
}

// whole returns a line that stands in memory with its ending.
func (r *Reader) whole(b []byte) ([]byte, *Long, error) {
	line := trim(b)
	if len(line) <= r.limits.Line {
		return line, nil, nil
	}
	l := newLong(r.limits.Head)
	l.add(bytes.TrimSuffix(b, []byte{'\n'}))
	return nil, l.end(), nil
}

// assemble reads on a line of which the source's buffer holds only a part.
func (r *Reader) assemble(part []byte) ([]byte, *Long, error) {
	r.spill = r.spill[:0]
	var err error = bufio.ErrBufferFull
	for {
		if len(r.spill)+len(part) > r.limits.Line+len("\r\n") {
			return r.overlong(part, err)
		}
		if err := r.reserve(len(part)); err != nil {
			return nil, nil, err
		}
		r.spill = append(r.spill, part...)
		switch {
		case err == nil, errors.Is(err, io.EOF):
			return r.whole(r.spill)
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, nil, err
		}
		part, err = r.src.ReadSlice('\n')
	}
}

// overlong reads to the end of a line that is longer than the limit. part is
// what follows the spill, err what the source said of it.
func (r *Reader) overlong(part []byte, err error) ([]byte, *Long, error) {
	l := newLong(r.limits.Head)
	l.add(r.spill)
	for {
		l.add(bytes.TrimSuffix(part, []byte{'\n'}))
		switch {
		case err == nil, errors.Is(err, io.EOF):
			return nil, l.end(), nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, nil, err
		}
		part, err = r.src.ReadSlice('\n')
	}
}

// reserve makes room for n more bytes in the spill.
func (r *Reader) reserve(n int) error {
	need := len(r.spill) + n
	if need <= cap(r.spill) {
		return nil
	}
	size := min(max(4*cap(r.spill), 2*r.src.Size(), need), max(need, r.limits.Line+len("\r\n")))
	if r.limits.Grow != nil {
		if err := r.limits.Grow(size - cap(r.spill)); err != nil {
			return fmt.Errorf("memory for a long line: %w", err)
		}
	}
	grown := make([]byte, len(r.spill), size)
	copy(grown, r.spill)
	r.spill = grown
	return nil
}

// trim cuts a line ending off.
func trim(b []byte) []byte {
	return bytes.TrimSuffix(bytes.TrimSuffix(b, []byte{'\n'}), []byte{'\r'})
}

func blank(line []byte) bool {
	for _, c := range line {
		if c != ' ' && c != '\t' && c != '\r' {
			return false
		}
	}
	return true
}

// long takes in a line piece by piece. A carriage return is held back until
// it is known not to belong to the ending.
type long struct {
	hash  hash.Hash
	head  []byte
	limit int
	size  int64
	cr    bool
}

func newLong(limit int) *long { return &long{hash: sha256.New(), limit: limit} }

func (l *long) add(b []byte) {
	if len(b) == 0 {
		return
	}
	if l.cr {
		l.write([]byte{'\r'})
	}
	if l.cr = b[len(b)-1] == '\r'; l.cr {
		b = b[:len(b)-1]
	}
	l.write(b)
}

func (l *long) write(b []byte) {
	l.hash.Write(b)
	l.size += int64(len(b))
	if room := l.limit - len(l.head); room > 0 {
		l.head = append(l.head, b[:min(room, len(b))]...)
	}
}

func (l *long) end() *Long {
	out := &Long{Head: l.head, Size: l.size}
	l.hash.Sum(out.SHA256[:0])
	return out
}
