package artifact

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/singleflight"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/failpoint"
	"github.com/nightjar-edr/nightjar/pkg/objects"
)

// uploadTimeout bounds a whole upload, lookupTimeout a question, and
// cleanTimeout the removal of what is not needed.
const (
	uploadTimeout = time.Hour
	lookupTimeout = 20 * time.Second
	cleanTimeout  = 10 * time.Second
)

// metaPrefix begins the subjects of the descriptions of an object store.
const metaPrefix = "$O." + stream.Artifacts + ".M."

// ErrStore means that the object store did not take or give a file.
var ErrStore = objects.ErrStore

// Store is the object store artifacts. It is safe for concurrent use.
type Store struct {
	content *objects.Store
	stream  jetstream.Stream
	joins   singleflight.Group
}

// Open binds to the object store, which its owner must have made. Its error
// wraps ErrStore.
func Open(ctx context.Context, js jetstream.JetStream) (*Store, error) {
	s, err := js.Stream(ctx, "OBJ_"+stream.Artifacts)
	if err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrStore, stream.Artifacts, err)
	}
	content, err := objects.Open(ctx, js, stream.Artifacts)
	if err != nil {
		return nil, err
	}
	return &Store{content: content, stream: s}, nil
}

// Get opens a file. The reader fails at the end when the content is not what
// was stored, and at once when it is removed meanwhile. A file that does not
// exist is a NotFound error, any other error wraps ErrStore.
func (s *Store) Get(ctx context.Context, id message.ArtifactID) (io.Reader, uint64, error) {
	info, err := s.content.Info(ctx, id.Object())
	if err != nil {
		return nil, 0, err
	}
	if !info.Exists() {
		return nil, 0, fault.New(fault.NotFound, "File not found")
	}
	return s.content.Read(ctx, &info.ObjectInfo), info.Size, nil
}

// draft is content without a name.
type draft struct {
	objects.Draft
	// kept says that the content has a name, or may get one.
	kept bool
}

// write stores what r gives as a draft. An error of the store wraps ErrStore;
// every other error is r's.
func (s *Store) write(ctx context.Context, r io.Reader) (*draft, error) {
	d, err := s.content.Write(ctx, r)
	if err != nil {
		return nil, err
	}
	return &draft{Draft: *d}, nil
}

// discard removes a draft that has no name. It does so even when the client is
// gone; what fails is removed by log-ingest later.
func (s *Store) discard(ctx context.Context, d *draft) {
	if !d.kept {
		s.content.Discard(ctx, d.ID)
	}
}

// forget removes an object's description.
func (s *Store) forget(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	_ = s.stream.Purge(ctx, jetstream.WithPurgeSubject(metaSubject(name)))
}

// name gives a draft its name. Where the name has the same content already
// the draft is not needed; another content is a Conflict.
func (s *Store) name(ctx context.Context, d *draft, name string) error {
	failpoint.Hit(failpoint.ArtifactBeforeName)
	_, err := s.content.Name(ctx, name, &d.Draft, map[string]string{message.ArtifactSHA256: d.SHA256()}, objects.Info{})
	switch {
	case err == nil:
		failpoint.Hit(failpoint.ArtifactAfterName)
		d.kept = true
	case errors.Is(err, objects.ErrChanged):
		return s.compare(ctx, d, name)
	case errors.Is(err, objects.ErrUncertain):
		d.kept = true // the content must stay
	}
	return err
}

// compare holds a draft against the content that its name has.
func (s *Store) compare(ctx context.Context, d *draft, name string) error {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	info, err := s.content.Info(ctx, name)
	if err == nil && !info.Exists() {
		err = fmt.Errorf("%w: look up: %w", ErrStore, jetstream.ErrObjectNotFound)
	}
	if err != nil {
		return err
	}
	if info.Digest != d.Digest || info.Size != d.Size {
		return fault.New(fault.Conflict, "a different file of that name exists")
	}
	return nil
}

func metaSubject(name string) string {
	return metaPrefix + base64.URLEncoding.EncodeToString([]byte(name))
}
