package gziplog

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
)

const (
	// readBuffer is read from the file at once.
	readBuffer = 64 << 10
	// keepMember is the size up to which the text of a member is kept while
	// it is checked, so that it need not be inflated again.
	keepMember = 1 << 20
)

// What may be wrong with a part of a file.
var (
	// ErrBreaksOff means that a member has no end.
	ErrBreaksOff = errors.New("gzip member breaks off")
	// ErrCorrupt means that a member cannot be inflated to its end.
	ErrCorrupt = errors.New("gzip member is corrupt")
	// ErrChecksum means that a member's text is not what was written. None
	// of its lines is given.
	ErrChecksum = errors.New("gzip member has a wrong checksum")
	// ErrNotGzip means that bytes belong to no member.
	ErrNotGzip = errors.New("not gzip")
)

// Damage is a part of a file that could not be read.
type Damage struct {
	// Offset is where the damaged member, or what is none, begins.
	Offset int64
	// Skipped is how many bytes of the file gave no text.
	Skipped int64
	// Err is one of the errors above.
	Err error
}

// Lost is what was inflated but is no line.
type Lost struct {
	// Torn is the number of lines cut off by damage.
	Torn int64
	// Long is the number of lines longer than the limit.
	Long int64
	// Bytes is the length of all of them.
	Bytes int64
}

// Reader reads the lines of one file.
type Reader struct {
	// Line is given each line without its ending, valid until it returns. A
	// line is checked when all of it comes from members whose checksum is
	// right. An error ends the reading.
	Line func(line []byte, checked bool) error
	// Damage is told of each damaged part. An error ends the reading.
	Damage func(Damage) error
	// Progress, if not nil, is told how much of the file has been read.
	Progress func(offset int64)
	// MaxLine is the length in bytes of the longest line.
	MaxLine int

	src       io.ReaderAt
	size      int64
	lost      Lost
	buf       []byte // a line that is not complete
	long      int64  // length of a line too long to be kept
	unchecked bool   // of the line that is not complete
	zip       *gzip.Reader
	file      *bufio.Reader
	keep      bytes.Buffer
}

// Read reads a file of size bytes from its beginning to its end. An error is
// one of reading src, or that of Line or Damage.
func (r *Reader) Read(src io.ReaderAt, size int64) (Lost, error) {
	r.src, r.size, r.lost = src, size, Lost{}
	r.buf, r.long, r.unchecked = r.buf[:0], 0, false
	for at := int64(0); at < size; {
		next, err := r.member(at)
		if err != nil {
			return r.lost, err
		}
		if at = next; r.Progress != nil {
			r.Progress(at)
		}
	}
	return r.lost, r.endLine()
}

// member reads the member at an offset and returns that of the next one.
func (r *Reader) member(at int64) (int64, error) {
	r.keep.Reset()
	k := &keeper{buf: &r.keep}
	end, cause, err := r.inflate(at, r.size, k)
	switch {
	case err != nil:
		return 0, err
	case cause == nil && !k.full:
		return end, r.text(r.keep.Bytes(), true)
	case cause == nil:
		_, _, err := r.inflate(at, end, &feeder{r: r, checked: true})
		return end, err
	}
	next, err := r.search(at + 1)
	if err != nil {
		return 0, err
	}
	if errors.Is(cause, ErrChecksum) && next >= end {
		// The member has its end, so what follows is no part of it.
		next = end
		end = at
	} else if end, cause, err = r.inflate(at, next, &feeder{r: r}); err != nil {
		// What stands behind the break was not taken for this member's.
		return 0, err
	} else if cause == nil {
		return 0, &readError{errChanged}
	}
	r.tear()
	return next, r.Damage(Damage{Offset: at, Skipped: next - end, Err: cause})
}

// inflate writes the text of the member at an offset, of which nothing
// stands at limit or behind, and returns where it ends or fails and, if it
// fails, what is wrong with it. An error is one of reading the file or of w.
func (r *Reader) inflate(at, limit int64, w io.Writer) (end int64, cause, err error) {
	src := &section{src: r.src, off: at, limit: limit}
	if r.file == nil {
		r.file, r.zip = bufio.NewReaderSize(src, readBuffer), new(gzip.Reader)
	} else {
		r.file.Reset(src)
	}
	head, _ := r.file.Peek(len(magic))
	failure := r.zip.Reset(r.file)
	switch {
	case src.err != nil:
		return at, nil, &readError{src.err}
	case failure != nil && bytes.HasPrefix(magic, head) && errors.Is(failure, io.ErrUnexpectedEOF):
		return at, ErrBreaksOff, nil
	case failure != nil:
		return at, ErrNotGzip, nil
	}
	r.zip.Multistream(false)
	out := &output{w: w}
	_, failure = io.Copy(out, struct{ io.Reader }{r.zip})
	end = src.off - int64(r.file.Buffered())
	switch {
	case src.err != nil:
		return end, nil, &readError{src.err}
	case out.err != nil:
		return end, nil, out.err
	case failure == nil:
		return end, nil, nil
	case errors.Is(failure, gzip.ErrChecksum):
		return end, ErrChecksum, nil
	case errors.Is(failure, io.ErrUnexpectedEOF):
		return end, ErrBreaksOff, nil
	}
	return end, ErrCorrupt, nil
}

// output remembers an error of its writer, to tell it from one of the file.
type output struct {
	w   io.Writer
	err error
}

// Write implements io.Writer.
func (o *output) Write(b []byte) (n int, err error) {
	n, o.err = o.w.Write(b)
	return n, o.err
}

// text takes in a piece of text and gives the lines that it completes.
func (r *Reader) text(b []byte, checked bool) error {
	for len(b) > 0 {
		r.unchecked = r.unchecked || !checked
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			r.extend(b)
			return nil
		}
		if len(r.buf) == 0 && r.long == 0 && i <= r.MaxLine {
			if err := r.give(b[:i]); err != nil {
				return err
			}
		} else {
			r.extend(b[:i])
			if err := r.endLine(); err != nil {
				return err
			}
		}
		b = b[i+1:]
	}
	return nil
}

// extend adds to the line that is not complete.
func (r *Reader) extend(b []byte) {
	if r.long > 0 || len(r.buf)+len(b) > r.MaxLine {
		r.long += int64(len(r.buf) + len(b))
		r.buf = r.buf[:0]
		return
	}
	r.buf = append(r.buf, b...)
}

// endLine completes the line.
func (r *Reader) endLine() error {
	if r.long > 0 {
		r.lost.Long++
		r.lost.Bytes += r.long
		r.long, r.unchecked = 0, false
		return nil
	}
	line := r.buf
	r.buf = r.buf[:0]
	return r.give(line)
}

func (r *Reader) give(line []byte) error {
	checked := !r.unchecked
	r.unchecked = false
	line = bytes.TrimSuffix(line, []byte{'\r'})
	if len(bytes.TrimSpace(line)) == 0 {
		return nil
	}
	return r.Line(line, checked)
}

// tear drops the line that damage has cut off.
func (r *Reader) tear() {
	if n := int64(len(r.buf)) + r.long; n > 0 {
		r.lost.Torn++
		r.lost.Bytes += n
	}
	r.buf, r.long, r.unchecked = r.buf[:0], 0, false
}

// keeper keeps text as long as there is little of it.
type keeper struct {
	buf  *bytes.Buffer
	full bool
}

// Write implements io.Writer.
func (k *keeper) Write(b []byte) (int, error) {
	if k.full = k.full || k.buf.Len()+len(b) > keepMember; !k.full {
		k.buf.Write(b)
	}
	return len(b), nil
}

// feeder hands text to its Reader.
type feeder struct {
	r       *Reader
	checked bool
}

// Write implements io.Writer.
func (f *feeder) Write(b []byte) (int, error) {
	if err := f.r.text(b, f.checked); err != nil {
		return 0, err
	}
	return len(b), nil
}

// errChanged means that a file is not what it was a moment ago.
var errChanged = errors.New("the file is being changed")

// readError is an error of reading the file.
type readError struct{ err error }

// Error implements error.
func (e *readError) Error() string { return fmt.Sprintf("read: %v", e.err) }

// Unwrap returns the error itself.
func (e *readError) Unwrap() error { return e.err }

// section reads a part of a file and remembers an error of the file itself.
type section struct {
	src        io.ReaderAt
	off, limit int64
	err        error
}

// Read implements io.Reader.
func (s *section) Read(b []byte) (int, error) {
	if s.off >= s.limit {
		return 0, io.EOF
	}
	n, err := s.src.ReadAt(b[:min(int64(len(b)), s.limit-s.off)], s.off)
	s.off += int64(n)
	switch {
	case n > 0:
		return n, nil
	case err == nil || errors.Is(err, io.EOF): // the file has become shorter
		err = io.ErrUnexpectedEOF
	}
	s.err = err
	return 0, err
}
