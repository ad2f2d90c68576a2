package objects

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
)

// ErrDamaged says that content is not what its description says.
var ErrDamaged = errors.New("the content differs from its description")

// reader reads content one chunk at a time, each only when it is asked for.
// Unlike an ObjectResult it needs no consumer, each chunk has a time limit of
// its own however slowly the content is read, and content that is removed
// meanwhile is an error at once.
type reader struct {
	ctx     context.Context
	stream  jetstream.Stream
	draft   Draft
	subject string
	next    uint64 // stream sequence from which the next chunk is looked for
	chunks  uint32
	size    uint64
	rest    []byte
	digest  hash.Hash
}

// Read returns a reader of an object's content. It returns io.EOF only when
// everything has been read and has the digest of the description.
func (s *Store) Read(ctx context.Context, info *jetstream.ObjectInfo) io.Reader {
	return s.ReadDraft(ctx, &Draft{ID: info.NUID, Size: info.Size, Chunks: info.Chunks, Digest: info.Digest})
}

// ReadDraft returns a reader of a draft's content, as Read does of an object's.
func (s *Store) ReadDraft(ctx context.Context, d *Draft) io.Reader {
	return &reader{ctx: ctx, stream: s.stream, draft: *d, next: 1, digest: sha256.New(), subject: stream.ObjectChunks(s.name, d.ID)}
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.chunks == r.draft.Chunks {
			if r.size != r.draft.Size || r.draft.Size > 0 && jetstream.GetObjectDigestValue(r.digest) != r.draft.Digest {
				return 0, fmt.Errorf("%w: %d bytes, %d expected", ErrDamaged, r.size, r.draft.Size)
			}
			return 0, io.EOF
		}
		m, err := r.chunk()
		if err != nil {
			return 0, fmt.Errorf("%w: chunk %d of %d: %w", ErrStore, r.chunks+1, r.draft.Chunks, err)
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

// chunk asks for the next chunk.
func (r *reader) chunk() (*jetstream.RawStreamMsg, error) {
	ctx, cancel := context.WithTimeout(r.ctx, messageTimeout)
	defer cancel()
	return r.stream.GetMsg(ctx, r.next, jetstream.WithGetMsgSubject(r.subject))
}
