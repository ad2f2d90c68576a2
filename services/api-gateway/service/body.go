package gateway

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/klauspost/compress/gzip"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
)

var (
	// errNotGzip means that a body which says it is gzip does not begin so.
	errNotGzip = errors.New("not gzip")
	// errGzip means that a gzip body is damaged or breaks off.
	errGzip = errors.New("gzip")
)

// zipped tells whether a request's body is gzip. A coding that is not known
// is an error.
func zipped(r *http.Request) (bool, error) {
	switch coding := strings.ToLower(strings.TrimSpace(r.Header.Get("Content-Encoding"))); coding {
	case "", "identity":
		return false, nil
	case "gzip", "x-gzip":
		return true, nil
	default:
		return false, errCoding
	}
}

// errCoding means that a body's Content-Encoding is not known.
var errCoding = errors.New("unsupported content encoding")

// openGzip begins to inflate what r gives. Bytes that are not the beginning
// of a gzip stream are errNotGzip, one that breaks off in its header errGzip.
func openGzip(zr *gzip.Reader, r *bufio.Reader) error {
	magic, err := r.Peek(2)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if len(magic) < 2 || magic[0] != 0x1f || magic[1] != 0x8b {
		return errNotGzip
	}
	err = zr.Reset(r)
	switch {
	case errors.Is(err, gzip.ErrHeader):
		return errNotGzip
	case err != nil:
		return fmt.Errorf("%w: %w", errGzip, err)
	}
	return nil
}

// inflated bounds what a body inflates to, as a whole and in proportion to
// what was sent.
type inflated struct {
	r      io.Reader
	packed *int64
	max, n int64
}

// Read implements io.Reader. Every failure but the end and that of a limit is
// an errGzip.
func (i *inflated) Read(p []byte) (int, error) {
	n, err := i.r.Read(p)
	i.n += int64(n)
	switch {
	case i.n > i.max, i.n > ratioAfter && i.n > *i.packed*maxRatio:
		return 0, errInflated
	case err != nil && !errors.Is(err, io.EOF):
		err = fmt.Errorf("%w: %w", errGzip, err)
	}
	return n, err
}

// bodyError is an error of a request's body itself, answered with a status of
// its own. What it wraps is of package fault, errNotGzip or errCoding.
type bodyError struct{ error }

// Unwrap returns the error that is to be answered.
func (e *bodyError) Unwrap() error { return e.error }

// openBody returns a request's body, inflated if it is gzip, of which at most
// max bytes can be read. Its errors, and those of reading, are for refusal.
func openBody(r *http.Request, max int64) (io.Reader, error) {
	zip, err := zipped(r)
	if err != nil {
		return nil, err
	}
	if !zip {
		return &limited{r: r.Body, max: max}, nil
	}
	packed := &counting{r: r.Body}
	zr := new(gzip.Reader)
	if err := openGzip(zr, bufio.NewReader(packed)); err != nil {
		return nil, err
	}
	return &inflated{r: zr, packed: &packed.n, max: max}, nil
}

// readBody returns a request's whole body, inflated if it is gzip, of at most
// max bytes. Its errors are a bodyError.
func readBody(r *http.Request, max int64) ([]byte, error) {
	src, err := openBody(r, max)
	var body []byte
	if err == nil {
		body, err = io.ReadAll(src)
	}
	if err != nil {
		return nil, bodyFailure(err)
	}
	return body, nil
}

// bodyFailure makes a bodyError of an error of openBody, or of reading what it
// returned.
func bodyFailure(err error) error {
	if !errors.Is(err, errCoding) && !fault.Is(err, fault.TooLarge) {
		_, err = refusal(err)
	}
	return &bodyError{err}
}

// limited refuses a body that is larger than max bytes.
type limited struct {
	r      io.Reader
	max, n int64
}

// Read implements io.Reader.
func (l *limited) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.n += int64(n); l.n > l.max {
		return 0, fault.New(fault.TooLarge, "body is larger than %d bytes", l.max)
	}
	return n, err
}

// counting counts what is read.
type counting struct {
	r io.Reader
	n int64
}

// Read implements io.Reader.
func (c *counting) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}
