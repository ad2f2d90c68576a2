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

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/objects"
)

// storeTimeout bounds one transfer to the object store, however slow the other
// end is.
const storeTimeout = time.Hour

// ErrStore means that the object store did not take or give a value.
var ErrStore = objects.ErrStore

// Uploads puts values of one endpoint into the object store, and remembers
// which, so that they can be taken back.
type Uploads struct {
	store    *objects.Store
	endpoint string
	contents map[string]string // IDs of contents by the names of their objects
	// Room, if not nil, is asked before each value; its error is Put's.
	Room func(context.Context) error
}

// NewUploads returns uploads of an endpoint to the object store of the values of
// commands.
func NewUploads(store *objects.Store, endpoint string) *Uploads {
	return &Uploads{store: store, endpoint: endpoint, contents: map[string]string{}}
}

// Put stores what r gives, all of it, on stable storage. It ends with r: a
// client that has gone ends its request's ctx, too, but what came of its file has
// to be taken back all the same. Its errors are Room's, r's, and such that wrap
// ErrStore.
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
	d, err := u.store.Write(ctx, r)
	if err != nil {
		return nil, err
	}
	if _, err := u.store.Name(ctx, name, d, nil, objects.Info{}); err != nil {
		if !errors.Is(err, objects.ErrUncertain) {
			u.store.Discard(ctx, d.ID)
		}
		return nil, err
	}
	u.contents[name] = d.ID
	return &message.CommandBlob{Object: name, Size: int64(d.Size)}, nil
}

// Discard removes what was put, but for the objects that keep names. What
// fails is removed by command-dispatch later.
func (u *Uploads) Discard(ctx context.Context, keep ...string) error {
	kept := make(map[string]bool, len(keep))
	for _, name := range keep {
		kept[name] = true
	}
	var errs []error
	for name, id := range u.contents {
		if !kept[name] {
			errs = append(errs, u.store.Remove(ctx, name, id))
		}
	}
	clear(u.contents)
	return errors.Join(errs...)
}

// Source keeps the error of its reader apart from all others: a document that
// breaks off is no malformed one.
type Source struct {
	R   io.Reader
	Err error // what R failed with; its end is none
}

// Read implements io.Reader.
func (s *Source) Read(p []byte) (int, error) {
	n, err := s.R.Read(p)
	if err != nil && err != io.EOF {
		s.Err = err
	}
	return n, err
}

// Check tells whether the objects that a command refers to are there.
func Check(ctx context.Context, store *objects.Store, r *message.CommandRecord) error {
	for _, name := range r.Objects() {
		if _, err := existing(ctx, store, name); err != nil {
			return fmt.Errorf("value of command %s: %w", r.UUID, err)
		}
	}
	return nil
}

// existing returns the description of an object that must be there.
func existing(ctx context.Context, store *objects.Store, name string) (objects.Info, error) {
	info, err := store.Info(ctx, name)
	if err == nil && !info.Exists() {
		err = fmt.Errorf("%w: it is not there any more", ErrStore)
	}
	if err != nil {
		err = fmt.Errorf("object %s: %w", name, err)
	}
	return info, err
}

// copyObject writes an object's content to w. One that is removed meanwhile, as
// its command may be, is an error at once.
func copyObject(ctx context.Context, store *objects.Store, b *message.CommandBlob, w io.Writer) error {
	info, err := existing(ctx, store, b.Object)
	if err != nil {
		return err
	}
	var enc io.WriteCloser = nopCloser{w}
	if !b.JSON {
		enc = base64.NewEncoder(base64.StdEncoding, w)
	}
	n, err := io.Copy(enc, store.Read(ctx, &info.ObjectInfo))
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
