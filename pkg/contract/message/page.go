package message

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
)

// maxPage is the size in bytes that the lines of a page may have.
const maxPage = 64 << 20

// errPage means that a page cannot be read.
var errPage = errors.New("malformed page")

// PageRun is a part of a body that stands at an offset of a page.
type PageRun struct{ From, Size, At int }

// AppendPage begins a page in dst: lines of a size in bytes, taken from a number
// of bodies, each of which is to be added by AppendPageBody. So lines travel as
// they are stored, compressed, and are put together where they are needed.
func AppendPage(dst []byte, size, bodies int) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(dst, uint64(size)), uint64(bodies))
}

// AppendPageBody adds a body, in the form that Compress gives, and what the page
// takes from it.
func AppendPageBody(dst, body []byte, runs []PageRun) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(runs)))
	for _, r := range runs {
		dst = binary.AppendUvarint(binary.AppendUvarint(binary.AppendUvarint(dst, uint64(r.From)), uint64(r.Size)), uint64(r.At))
	}
	return append(binary.AppendUvarint(dst, uint64(len(body))), body...)
}

// scratch are buffers for one body of a page.
var scratch = sync.Pool{New: func() any { return new([]byte) }}

// OpenPage returns the lines of a page, in the memory of dst if they fit.
func OpenPage(dst, data []byte) ([]byte, error) {
	r := pageReader{rest: data}
	size, bodies := r.number(maxPage), r.number(len(data))
	if r.bad {
		return nil, errPage
	}
	if cap(dst) < size {
		dst = make([]byte, size)
	}
	dst = dst[:size]
	buf := scratch.Get().(*[]byte)
	defer scratch.Put(buf)
	var runs []PageRun
	for range bodies {
		runs = runs[:0]
		for range r.number(len(r.rest)) {
			runs = append(runs, PageRun{From: r.number(maxPage), Size: r.number(maxPage), At: r.number(maxPage)})
		}
		packed := r.bytes(r.number(len(r.rest)))
		if r.bad {
			return nil, errPage
		}
		body, err := Decompress((*buf)[:0], packed)
		if err != nil {
			return nil, fmt.Errorf("page: %w", err)
		}
		if cap(body) <= 4<<20 {
			*buf = body
		}
		for _, n := range runs {
			if n.From+n.Size > len(body) || n.At+n.Size > len(dst) {
				return nil, errPage
			}
			copy(dst[n.At:], body[n.From:n.From+n.Size])
			size -= n.Size
		}
	}
	if size != 0 || len(r.rest) > 0 {
		return nil, errPage
	}
	return dst, nil
}

// pageReader reads the parts of a page; bad tells that one could not be read.
type pageReader struct {
	rest []byte
	bad  bool
}

// number reads a number of at most limit.
func (r *pageReader) number(limit int) int {
	v, n := binary.Uvarint(r.rest)
	if n <= 0 || v > uint64(limit) {
		r.bad = true
		return 0
	}
	r.rest = r.rest[n:]
	return int(v)
}

// bytes reads n bytes.
func (r *pageReader) bytes(n int) []byte {
	if r.bad = r.bad || n > len(r.rest); r.bad {
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}
