package command

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/failpoint"
	"github.com/nightjar-edr/nightjar/pkg/objects"
)

// storeTimeout bounds one transfer to the object store, however slow the other
// end is.
const storeTimeout = time.Hour

// ErrStore means that the object store did not take or give a value.
var ErrStore = objects.ErrStore

// Files is the object store of the values of commands. It is safe for concurrent
// use.
type Files struct {
	jetstream.ObjectStore
	content *objects.Store
}

// OpenFiles binds to the object store, which its owner must have made. Its error
// wraps ErrStore.
func OpenFiles(ctx context.Context, js jetstream.JetStream) (*Files, error) {
	store, err := js.ObjectStore(ctx, stream.Files)
	if err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrStore, stream.Files, err)
	}
	content, err := objects.Open(ctx, js, stream.Files)
	if err != nil {
		return nil, err
	}
	return &Files{ObjectStore: store, content: content}, nil
}

// Uploads puts values of one endpoint into the object store, and remembers
// which, so that they can be taken back.
type Uploads struct {
	store    *Files
	endpoint string
	names    []string
	// Room, if not nil, is asked before each value; its error is Put's.
	Room func(context.Context) error
}

// NewUploads returns uploads of an endpoint.
func NewUploads(store *Files, endpoint string) *Uploads {
	return &Uploads{store: store, endpoint: endpoint}
}

// Put stores what r gives, all of it, on stable storage. It ends with r: a
// client that has gone ends its request's ctx, too, but what came of its file has
// to be taken back all the same.
func (u *Uploads) Put(ctx context.Context, r io.Reader) (*message.CommandBlob, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	if u.Room != nil {
		if err := u.Room(ctx); err != nil {
			return nil, err
		}
	}
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails
	name := u.endpoint + "/" + hex.EncodeToString(random[:])
	src := &source{r: r}
	info, err := u.store.Put(ctx, jetstream.ObjectMeta{Name: name}, src)
	if src.err != nil {
		return nil, src.err
	}
	if err != nil {
		return nil, fmt.Errorf("%w: store a value of a command: %w", ErrStore, err)
	}
	u.names = append(u.names, name)
	return &message.CommandBlob{Object: name, Size: int64(info.Size)}, nil
}

// Discard deletes what was put, but for the objects that keep names. What
// fails is removed by command-dispatch later.
func (u *Uploads) Discard(ctx context.Context, keep ...string) error {
	kept := make(map[string]bool, len(keep))
	for _, name := range keep {
		kept[name] = true
	}
	var errs []error
	for _, name := range u.names {
		if !kept[name] {
			errs = append(errs, u.store.Delete(ctx, name))
		}
	}
	u.names = nil
	return errors.Join(errs...)
}

// source fills the chunks of an object, and keeps the error of its reader
// apart from the store's.
type source struct {
	r   io.Reader
	err error
}

// Read implements io.Reader. Only the last chunk is shorter than p.
func (s *source) Read(p []byte) (int, error) {
	failpoint.Hit(failpoint.FileMidUpload)
	n := 0
	for n < len(p) {
		m, err := s.r.Read(p[n:])
		n += m
		switch {
		case err == io.EOF && n > 0:
			return n, nil
		case err == io.EOF:
			return 0, io.EOF
		case err != nil:
			s.err = err
			return n, err
		}
	}
	return n, nil
}

// Check tells whether the objects that a command refers to are there.
func Check(ctx context.Context, store *Files, r *message.CommandRecord) error {
	for _, name := range r.Objects() {
		if _, err := store.GetInfo(ctx, name); err != nil {
			return fmt.Errorf("value of command %s: %w", r.UUID, err)
		}
	}
	return nil
}

// copyObject writes an object's content to w. One that is removed meanwhile, as
// its command may be, is an error at once.
func copyObject(ctx context.Context, store *Files, b *message.CommandBlob, w io.Writer) error {
	info, err := store.content.Info(ctx, b.Object)
	if err == nil && !info.Exists() {
		err = fmt.Errorf("%w: it is not there any more", ErrStore)
	}
	if err != nil {
		return fmt.Errorf("object %s: %w", b.Object, err)
	}
	var enc io.WriteCloser = nopCloser{w}
	if !b.JSON {
		enc = base64.NewEncoder(base64.StdEncoding, w)
	}
	n, err := io.Copy(enc, store.content.Read(ctx, &info.ObjectInfo))
	if err != nil {
		return fmt.Errorf("object %s: %w", b.Object, err)
	}
	if n != b.Size {
		return fmt.Errorf("object %s: %d bytes, want %d", b.Object, n, b.Size)
	}
	return enc.Close()
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
