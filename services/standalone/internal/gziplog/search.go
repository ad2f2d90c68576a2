package gziplog

import (
	"bytes"
	"errors"
	"io"
)

// firstLook is how much of a file is looked at before more of it is.
const firstLook = 4 << 10

// magic begins every member: identification and the method deflate.
var magic = []byte{0x1f, 0x8b, 0x08}

// goHeader is the whole header that Go's package compress/gzip writes for a
// member without a name and a time, as the WHIDS manager does.
var goHeader = []byte{0x1f, 0x8b, 0x08, 0, 0, 0, 0, 0, 0, 0xff}

// search returns the offset of the first member at an offset or behind it, or
// the size of the file. Bytes that look like a header may be anything, so a
// member is believed only when it is whole, or when its header is the one
// that Go writes: its ten bytes do not stand in a file by chance.
func (r *Reader) search(at int64) (int64, error) {
	window := make([]byte, readBuffer)
	for at < r.size {
		n, err := r.src.ReadAt(window[:min(int64(len(window)), r.size-at)], at)
		if n == 0 {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return 0, &readError{err}
		}
		b := window[:n]
		for i := 0; ; i++ {
			found := bytes.Index(b[i:], magic)
			if found < 0 {
				break
			}
			i += found
			whole, err := r.begins(at + int64(i))
			if err != nil {
				return 0, err
			}
			if whole {
				return at + int64(i), nil
			}
		}
		if at+int64(n) >= r.size {
			break
		}
		// A header may stand across the border of two windows.
		at += int64(max(1, n-len(magic)+1))
	}
	return r.size, nil
}

// begins tells whether a member begins at an offset.
func (r *Reader) begins(at int64) (bool, error) {
	head := make([]byte, len(goHeader))
	n, err := r.src.ReadAt(head, at)
	if n < len(head) && err != nil && !errors.Is(err, io.EOF) {
		return false, &readError{err}
	}
	if bytes.Equal(head[:n], goHeader) {
		return true, nil
	}
	// Most that is none fails early.
	_, cause, err := r.inflate(at, min(at+firstLook, r.size), io.Discard)
	if err == nil && errors.Is(cause, ErrBreaksOff) {
		_, cause, err = r.inflate(at, r.size, io.Discard)
	}
	return cause == nil && err == nil, err
}
