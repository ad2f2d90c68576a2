package artifact

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/singleflight"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/failpoint"
)

const (
	// chunkSize is the size of the messages that a file is cut into.
	chunkSize = 256 << 10
	// chunkTimeout bounds the storing of one message, uploadTimeout a whole
	// upload, and cleanTimeout the removal of what is not needed.
	chunkTimeout  = 20 * time.Second
	uploadTimeout = time.Hour
	cleanTimeout  = 10 * time.Second
)

// Subjects of an object store: the chunks of an object, and its description.
const (
	chunkPrefix = "$O." + stream.Artifacts + ".C."
	metaPrefix  = "$O." + stream.Artifacts + ".M."
)

// ErrStore means that the object store did not take or give a file.
var ErrStore = errors.New("object store")

// Store is the object store artifacts. It is safe for concurrent use.
type Store struct {
	js      jetstream.JetStream
	objects jetstream.ObjectStore
	stream  jetstream.Stream
	joins   singleflight.Group
}

// Open binds to the object store, which its owner must have made. Its error
// wraps ErrStore.
func Open(ctx context.Context, js jetstream.JetStream) (*Store, error) {
	objects, err := js.ObjectStore(ctx, stream.Artifacts)
	if err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrStore, stream.Artifacts, err)
	}
	s, err := js.Stream(ctx, "OBJ_"+stream.Artifacts)
	if err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrStore, stream.Artifacts, err)
	}
	return &Store{js: js, objects: objects, stream: s}, nil
}

// Get opens a file. The reader fails at the end when the content is not what
// was stored; it is to be closed. A file that does not exist is a NotFound
// error, any other error wraps ErrStore. A file is to be read within an hour.
func (s *Store) Get(ctx context.Context, id message.ArtifactID) (io.ReadCloser, uint64, error) {
	return s.get(ctx, id.Object())
}

func (s *Store) get(ctx context.Context, name string) (io.ReadCloser, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, uploadTimeout)
	o, err := s.objects.Get(ctx, name)
	if err != nil {
		cancel()
		if errors.Is(err, jetstream.ErrObjectNotFound) {
			return nil, 0, fault.New(fault.NotFound, "File not found")
		}
		return nil, 0, fmt.Errorf("%w: open: %w", ErrStore, err)
	}
	info, err := o.Info()
	if err != nil {
		_ = o.Close()
		cancel()
		return nil, 0, fmt.Errorf("%w: open: %w", ErrStore, err)
	}
	return &object{ObjectResult: o, cancel: cancel}, info.Size, nil
}

type object struct {
	jetstream.ObjectResult
	cancel context.CancelFunc
}

// Close implements io.Closer.
func (o *object) Close() error {
	defer o.cancel()
	return o.ObjectResult.Close()
}

// draft is content without a name.
type draft struct {
	id     string
	size   uint64
	chunks uint32
	digest string
	sum    string
	// kept says that the content has a name, or may get one.
	kept bool
}

// write stores what r gives as a draft. An error of the store wraps ErrStore;
// every other error is r's.
func (s *Store) write(ctx context.Context, r io.Reader) (_ *draft, err error) {
	d := &draft{id: rand.Text()}
	defer func() {
		if err != nil {
			s.discard(ctx, d)
		}
	}()
	h := sha256.New()
	buf := make([]byte, chunkSize)
	for end := false; !end; {
		n, err := io.ReadFull(r, buf)
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF:
			end = true
		case err != nil:
			return nil, err
		}
		if n == 0 {
			break
		}
		h.Write(buf[:n])
		publishing, cancel := context.WithTimeout(ctx, chunkTimeout)
		_, err = s.js.PublishMsg(publishing, &nats.Msg{Subject: chunkPrefix + d.id, Data: buf[:n]})
		cancel()
		if err != nil {
			return nil, fmt.Errorf("%w: write: %w", ErrStore, err)
		}
		failpoint.Hit(failpoint.ArtifactMidUpload)
		d.size += uint64(n)
		d.chunks++
	}
	d.digest, d.sum = jetstream.GetObjectDigestValue(h), hex.EncodeToString(h.Sum(nil))
	return d, nil
}

// discard removes a draft that has no name. It does so even when the client is
// gone; what fails is removed by log-ingest later.
func (s *Store) discard(ctx context.Context, d *draft) {
	if d == nil || d.kept || d.id == "" {
		return
	}
	s.purge(ctx, chunkPrefix+d.id)
}

func (s *Store) purge(ctx context.Context, subject string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	_ = s.stream.Purge(ctx, jetstream.WithPurgeSubject(subject))
}

// name gives a draft its name. Where the name has the same content already
// the draft is not needed; another content is a Conflict.
func (s *Store) name(ctx context.Context, d *draft, name string) error {
	data, err := json.Marshal(jetstream.ObjectInfo{
		ObjectMeta: jetstream.ObjectMeta{Name: name, Metadata: map[string]string{message.ArtifactSHA256: d.sum},
			Opts: &jetstream.ObjectMetaOptions{ChunkSize: chunkSize}},
		Bucket: stream.Artifacts, NUID: d.id, Size: d.size, Chunks: d.chunks, Digest: d.digest,
	})
	if err != nil {
		return fmt.Errorf("encode description: %w", err)
	}
	publishing, cancel := context.WithTimeout(ctx, chunkTimeout)
	defer cancel()
	failpoint.Hit(failpoint.ArtifactBeforeName)
	_, err = s.js.PublishMsg(publishing, &nats.Msg{Subject: metaSubject(name), Data: data}, jetstream.WithExpectLastSequencePerSubject(0))
	var api *jetstream.APIError
	switch {
	case err == nil:
		failpoint.Hit(failpoint.ArtifactAfterName)
		d.kept = true
		return nil
	case errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence:
		return s.compare(ctx, d, name)
	case errors.As(err, &api):
		return fmt.Errorf("%w: describe: %w", ErrStore, err)
	}
	// Whether it was stored is not known, so the content must stay.
	d.kept = true
	return fmt.Errorf("%w: describe: %w", ErrStore, err)
}

// compare holds a draft against the content that its name has.
func (s *Store) compare(ctx context.Context, d *draft, name string) error {
	ctx, cancel := context.WithTimeout(ctx, chunkTimeout)
	defer cancel()
	info, err := s.objects.GetInfo(ctx, name)
	if err != nil {
		return fmt.Errorf("%w: look up: %w", ErrStore, err)
	}
	if info.Digest != d.digest || info.Size != d.size {
		return fault.New(fault.Conflict, "a different file of that name exists")
	}
	return nil
}

func metaSubject(name string) string {
	return metaPrefix + base64.URLEncoding.EncodeToString([]byte(name))
}
