package gateway

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"time"
)

const (
	// writePiece is the most that is written under one deadline.
	writePiece = 64 << 10
	// drainTimeout is how long what is left of a body that nobody reads may
	// take to come in.
	drainTimeout = 5 * time.Second
)

// transfer keeps a request alive as long as it makes progress: each piece
// that is read or written extends the connection's deadline.
type transfer struct {
	http.ResponseWriter
	rc      *http.ResponseController
	timeout time.Duration
	written time.Time // when the write deadline was set
	body    *progressBody
}

// newTransfer wraps both directions of a request.
func newTransfer(w http.ResponseWriter, r *http.Request, timeout time.Duration) *transfer {
	t := &transfer{ResponseWriter: w, rc: http.NewResponseController(w), timeout: timeout}
	if r.Body != nil && r.Body != http.NoBody {
		t.body = &progressBody{ReadCloser: r.Body, t: t}
		r.Body = t.body
	}
	t.extendWrite()
	return t
}

// due tells whether a deadline that was set at last needs to be set again.
func (t *transfer) due(last time.Time, now time.Time) bool { return now.Sub(last) > t.timeout/16 }

func (t *transfer) extendWrite() {
	if now := time.Now(); t.due(t.written, now) {
		t.written = now
		// A connection without deadlines has none to extend.
		_ = t.rc.SetWriteDeadline(now.Add(t.timeout))
	}
}

// Write implements http.ResponseWriter.
func (t *transfer) Write(p []byte) (int, error) {
	done := 0
	for {
		piece := p[done:min(len(p), done+writePiece)]
		t.extendWrite()
		n, err := t.ResponseWriter.Write(piece)
		done += n
		if err != nil || done == len(p) {
			return done, err
		}
	}
}

// Flush implements http.Flusher.
func (t *transfer) Flush() {
	t.extendWrite()
	_ = t.rc.Flush()
}

// Hijack implements http.Hijacker. The deadlines are the caller's from then on.
func (t *transfer) Hijack() (net.Conn, *bufio.ReadWriter, error) { return t.rc.Hijack() }

// Unwrap is for http.ResponseController.
func (t *transfer) Unwrap() http.ResponseWriter { return t.ResponseWriter }

// end gives what the server still drains, and then writes, a deadline. A body
// that could not be read is not drained.
func (t *transfer) end() {
	now := time.Now()
	_ = t.rc.SetWriteDeadline(now.Add(drainTimeout + t.timeout))
	switch {
	case t.body == nil || t.body.ended:
	case t.body.failed:
		_ = t.rc.SetReadDeadline(now)
	default:
		_ = t.rc.SetReadDeadline(now.Add(drainTimeout))
	}
}

type progressBody struct {
	io.ReadCloser
	t     *transfer
	set   time.Time
	ended bool
	// failed says that reading has ended before the body has.
	failed bool
}

// Read implements io.Reader. At the end of the body the deadline is taken
// away, for the server goes on reading to notice a client that leaves.
func (b *progressBody) Read(p []byte) (int, error) {
	if now := time.Now(); !b.ended && b.t.due(b.set, now) {
		b.set = now
		_ = b.t.rc.SetReadDeadline(now.Add(b.t.timeout))
	}
	n, err := b.ReadCloser.Read(p)
	switch {
	case err == nil || b.ended:
	case errors.Is(err, io.EOF):
		b.ended = true
		_ = b.t.rc.SetReadDeadline(time.Time{})
	default:
		b.failed = true
	}
	return n, err
}
