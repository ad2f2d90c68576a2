package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"unicode/utf8"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
)

// maxLinePiece is the most of a line that is in memory, in bytes.
const maxLinePiece = 64 << 10

// errObject says that an object is not what its description says.
var errObject = errors.New("the object differs from its description")

// objectReader reads an object of the store containers, one chunk at a time
// and each only when it is asked for. Unlike an ObjectResult it needs no
// consumer, each chunk has a time limit of its own however slowly the content
// is read, and an object that is deleted meanwhile is an error at once.
type objectReader struct {
	ctx     context.Context
	stream  jetstream.Stream
	info    *jetstream.ObjectInfo
	subject string
	next    uint64 // stream sequence from which the next chunk is looked for
	chunks  uint32
	size    uint64
	rest    []byte
	digest  hash.Hash
}

func newObjectReader(ctx context.Context, str jetstream.Stream, info *jetstream.ObjectInfo) *objectReader {
	return &objectReader{
		ctx: ctx, stream: str, info: info, next: 1, digest: sha256.New(),
		subject: stream.ObjectChunks(stream.Containers, info.NUID),
	}
}

// Read implements io.Reader. It returns io.EOF only when everything has been
// read and has the digest of the description.
func (r *objectReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.chunks == r.info.Chunks {
			if r.size != r.info.Size || r.info.Size > 0 && jetstream.GetObjectDigestValue(r.digest) != r.info.Digest {
				return 0, fmt.Errorf("%w: %d bytes, %d expected", errObject, r.size, r.info.Size)
			}
			return 0, io.EOF
		}
		m, err := r.stream.GetMsg(r.ctx, r.next, jetstream.WithGetMsgSubject(r.subject))
		if err != nil {
			return 0, fmt.Errorf("chunk %d of %d: %w", r.chunks+1, r.info.Chunks, err)
		}
		r.next, r.rest = m.Sequence+1, m.Data
		r.chunks++
		r.size += uint64(len(m.Data))
		_, _ = r.digest.Write(m.Data) // never fails
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// readLines calls f with the lines of a container's content, as
// message.DecodeContainer reads them. A line longer than maxLinePiece comes in
// pieces, of which end marks the last; no piece ends within a character.
func readLines(r io.Reader, f func(piece []byte, end bool) error) error {
	in := bufio.NewReaderSize(r, maxLinePiece)
	var buf []byte
	within := false
	for {
		part, err := in.ReadSlice('\n')
		buf = append(buf, part...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			n := len(buf) - undecided(buf)
			if err := f(buf[:n], false); err != nil {
				return err
			}
			buf, within = append(buf[:0], buf[n:]...), true
			continue
		case err != nil && !errors.Is(err, io.EOF):
			return err
		case err != nil && len(buf) == 0 && !within:
			return nil
		}
		if err := f(bytes.TrimSuffix(bytes.TrimSuffix(buf, []byte("\n")), []byte("\r")), true); err != nil {
			return err
		}
		if err != nil {
			return nil
		}
		buf, within = buf[:0], false
	}
}

// undecided returns how many bytes at the end of b mean what the next ones
// decide: a carriage return, or the beginning of a character.
func undecided(b []byte) int {
	if bytes.HasSuffix(b, []byte("\r")) {
		return 1
	}
	for n := 1; n < utf8.UTFMax && n <= len(b); n++ {
		if last := b[len(b)-n:]; utf8.RuneStart(last[0]) {
			if utf8.FullRune(last) {
				return 0
			}
			return n
		}
	}
	return 0
}

// writeLines writes a container's content as a JSON array of lines.
func writeLines(w io.Writer, content io.Reader) error {
	before := []byte(`["`)
	lines, open := 0, false
	err := readLines(content, func(piece []byte, end bool) error {
		if !open {
			if _, err := w.Write(before); err != nil {
				return err
			}
			before = []byte(`,"`)
			open = true
			lines++
		}
		text, err := json.Marshal(string(piece))
		if err != nil {
			return fmt.Errorf("encode line: %w", err)
		}
		text = text[1:]
		if open = !end; open {
			text = text[:len(text)-1]
		}
		_, err = w.Write(text)
		return err
	})
	if err != nil {
		return err
	}
	if lines == 0 {
		_, err = io.WriteString(w, "[]")
	} else {
		_, err = io.WriteString(w, "]")
	}
	return err
}

// hashLines returns the hexadecimal SHA-256 over the lines of a container's
// content, without anything between them. They are taken as writeLines gives
// them, so bytes that are no UTF-8 count as the replacement character, and an
// agent can verify what it got.
func hashLines(content io.Reader) (string, error) {
	sum := sha256.New()
	err := readLines(content, func(piece []byte, _ bool) error {
		if !utf8.Valid(piece) {
			piece = []byte(string([]rune(string(piece))))
		}
		_, err := sum.Write(piece)
		return err
	})
	if err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
