package objects

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

	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/failpoint"
)

const (
	// ChunkSize is the size in bytes of the messages that content is cut into.
	ChunkSize = 256 << 10
	// messageTimeout bounds the storing of one message, cleanTimeout the
	// removal of what is not needed, and forgetTimeout that of a consumer.
	messageTimeout = 20 * time.Second
	cleanTimeout   = 10 * time.Second
	forgetTimeout  = time.Second
)

var (
	// ErrStore means that the object store did not take or give something.
	ErrStore = errors.New("object store")
	// ErrChanged means that a name was changed by somebody else meanwhile.
	ErrChanged = errors.New("changed meanwhile")
	// ErrUncertain means that an answer is missing, so that it is not known
	// whether a change was made. It comes with ErrStore.
	ErrUncertain = errors.New("without an answer")
)

// Store is an object store. It is safe for concurrent use.
type Store struct {
	name   string
	js     jetstream.JetStream
	stream jetstream.Stream
}

// Open binds to an object store, which its owner must have made. Its error
// wraps ErrStore.
func Open(ctx context.Context, js jetstream.JetStream, name string) (*Store, error) {
	streamName, _ := stream.ObjectStream(name)
	str, err := js.Stream(ctx, streamName)
	if err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrStore, name, err)
	}
	return &Store{name: name, js: js, stream: str}, nil
}

// Draft is content without a name.
type Draft struct {
	// ID is what the chunks are stored under.
	ID     string `json:"id"`
	Size   uint64 `json:"size"`
	Chunks uint32 `json:"chunks"`
	// Digest is the SHA-256 of the content in the form of object stores.
	Digest string `json:"digest"`
}

// Info is the description of an object.
type Info struct {
	jetstream.ObjectInfo
	// Seq is the description's sequence in the store's stream, 0 for a name
	// that never had one.
	Seq uint64
}

// Exists tells whether there is an object of that name.
func (i *Info) Exists() bool { return i.Seq > 0 && !i.Deleted }

// SHA256 returns the SHA-256 of the content in hexadecimal digits, empty where
// the description has none.
func (i *Info) SHA256() string { return hexDigest(i.Digest) }

// SHA256 returns the SHA-256 of the content in hexadecimal digits.
func (d *Draft) SHA256() string { return hexDigest(d.Digest) }

// hexDigest gives a digest in the form of object stores another form.
func hexDigest(digest string) string {
	sum, err := jetstream.DecodeObjectDigest(digest)
	if err != nil {
		return ""
	}
	return hex.EncodeToString(sum)
}

// Write stores what r gives as a draft. An error of the store wraps ErrStore;
// every other error is r's. What was stored by then is removed.
func (s *Store) Write(ctx context.Context, r io.Reader) (_ *Draft, err error) {
	d := &Draft{ID: rand.Text()}
	defer func() {
		if err != nil {
			s.Discard(ctx, d.ID)
		}
	}()
	h := sha256.New()
	buf := make([]byte, ChunkSize)
	for end := false; !end; {
		// Not io.ReadFull: its error for content that ends is also r's for
		// content that breaks off.
		n := 0
		for n < len(buf) && !end {
			m, err := r.Read(buf[n:])
			n += m
			if end = err == io.EOF; err != nil && !end {
				return nil, err
			}
		}
		if n == 0 {
			break
		}
		h.Write(buf[:n])
		if _, err := s.publish(ctx, &nats.Msg{Subject: stream.ObjectChunks(s.name, d.ID), Data: buf[:n]}); err != nil {
			return nil, fmt.Errorf("%w: write: %w", ErrStore, err)
		}
		failpoint.HitIn(failpoint.ObjectMidWrite, s.name)
		d.Size += uint64(n)
		d.Chunks++
	}
	d.Digest = jetstream.GetObjectDigestValue(h)
	return d, nil
}

func (s *Store) publish(ctx context.Context, m *nats.Msg, opts ...jetstream.PublishOpt) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, messageTimeout)
	defer cancel()
	ack, err := s.js.PublishMsg(ctx, m, opts...)
	if err != nil {
		return 0, err
	}
	return ack.Sequence, nil
}

// Discard removes content that has no name, or has none any more. It does so
// even when ctx has ended. What fails is left to Tidy.
func (s *Store) Discard(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	_ = s.stream.Purge(ctx, jetstream.WithPurgeSubject(stream.ObjectChunks(s.name, id)))
}

// Info returns the description of a name, also of one that was deleted. One
// that never was has the sequence 0. Its error wraps ErrStore.
func (s *Store) Info(ctx context.Context, name string) (Info, error) {
	m, err := s.stream.GetLastMsgForSubject(ctx, s.metaSubject(name))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return Info{}, nil
	} else if err != nil {
		return Info{}, fmt.Errorf("%w: look up: %w", ErrStore, err)
	}
	info := Info{Seq: m.Sequence}
	if err := json.Unmarshal(m.Data, &info.ObjectInfo); err != nil {
		return Info{}, fmt.Errorf("%w: description of %s: %w", ErrStore, name, err)
	}
	info.ModTime = m.Time.UTC()
	return info, nil
}

// Last returns the sequence of the newest description of the whole store, 0 when
// there is none. Its error wraps ErrStore.
func (s *Store) Last(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, messageTimeout)
	defer cancel()
	name, filter := stream.ObjectStream(s.name)
	seq, err := stream.LastSequence(ctx, s.js, name, filter)
	if err != nil {
		return 0, fmt.Errorf("%w: look up: %w", ErrStore, err)
	}
	return seq, nil
}

// Name gives a draft a name in place of what the name stood for, whose
// description before tells, and returns the new one. The content before stays
// stored; Discard removes it. The error wraps ErrChanged when before is not the
// newest description, otherwise ErrStore, and ErrUncertain besides when the
// draft may have the name.
func (s *Store) Name(ctx context.Context, name string, d *Draft, metadata map[string]string, before Info) (Info, error) {
	return s.describe(ctx, before, jetstream.ObjectInfo{
		ObjectMeta: jetstream.ObjectMeta{Name: name, Metadata: metadata, Opts: &jetstream.ObjectMetaOptions{ChunkSize: ChunkSize}},
		Bucket:     s.name, NUID: d.ID, Size: d.Size, Chunks: d.Chunks, Digest: d.Digest,
	})
}

// Annotate replaces the metadata of an object. Its error is as Name's.
func (s *Store) Annotate(ctx context.Context, metadata map[string]string, before Info) (Info, error) {
	info := before.ObjectInfo
	info.Metadata = metadata
	return s.describe(ctx, before, info)
}

// Delete makes an object deleted. Its metadata and its content stay; Discard
// removes the latter. Its error is as Name's.
func (s *Store) Delete(ctx context.Context, before Info) (Info, error) {
	info := before.ObjectInfo
	info.Deleted, info.Size, info.Chunks, info.Digest = true, 0, 0, ""
	return s.describe(ctx, before, info)
}

func (s *Store) describe(ctx context.Context, before Info, info jetstream.ObjectInfo) (Info, error) {
	info.ModTime = time.Time{} // it is that of the message
	data, err := json.Marshal(info)
	if err != nil {
		return Info{}, fmt.Errorf("encode description: %w", err)
	}
	m := nats.NewMsg(s.metaSubject(info.Name))
	m.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupSubject)
	m.Data = data
	seq, err := s.publish(ctx, m, jetstream.WithExpectLastSequencePerSubject(before.Seq))
	var api *jetstream.APIError
	switch {
	case err == nil:
		info.ModTime = time.Now().UTC()
		return Info{ObjectInfo: info, Seq: seq}, nil
	case errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence:
		return Info{}, fmt.Errorf("%s was %w", info.Name, ErrChanged)
	case errors.As(err, &api):
		return Info{}, fmt.Errorf("%w: describe: %w", ErrStore, err)
	}
	return Info{}, fmt.Errorf("%w: describe %w: %w", ErrStore, ErrUncertain, err)
}

// Remove removes an object without a trace, its content and its description;
// nobody who follows the store learns of it. The description goes last, so that
// a removal that breaks off can be taken up again. The error wraps ErrStore.
func (s *Store) Remove(ctx context.Context, name, id string) error {
	for _, subject := range []string{stream.ObjectChunks(s.name, id), s.metaSubject(name)} {
		if err := s.stream.Purge(ctx, jetstream.WithPurgeSubject(subject)); err != nil {
			return fmt.Errorf("%w: remove %s: %w", ErrStore, name, err)
		}
	}
	return nil
}

// Size returns how many bytes the store takes. Its error wraps ErrStore.
func (s *Store) Size(ctx context.Context) (uint64, error) {
	info, err := s.stream.Info(ctx)
	if err != nil {
		return 0, fmt.Errorf("%w: size: %w", ErrStore, err)
	}
	return info.State.Bytes, nil
}

func (s *Store) metaSubject(name string) string {
	return "$O." + s.name + ".M." + base64.URLEncoding.EncodeToString([]byte(name))
}

// Tidy removes content that has no name and was written before a time: what is
// left of drafts whose writer died, and of names that were changed. It returns
// how many it removed.
func (s *Store) Tidy(ctx context.Context, before time.Time) (removed int, err error) {
	// The content is listed before the names: what got its name meanwhile is
	// known then.
	prefix := stream.ObjectChunks(s.name, "")
	info, err := s.stream.Info(ctx, jetstream.WithSubjectFilter(prefix+"*"))
	if err != nil {
		return 0, fmt.Errorf("list content: %w", err)
	}
	content := info.State.Subjects
	_, metas := stream.ObjectStream(s.name)
	if info, err = s.stream.Info(ctx, jetstream.WithSubjectFilter(metas)); err != nil {
		return 0, fmt.Errorf("list objects: %w", err)
	}
	for meta := range info.State.Subjects {
		m, err := s.stream.GetLastMsgForSubject(ctx, meta)
		if err != nil {
			return 0, fmt.Errorf("look at an object: %w", err)
		}
		var o jetstream.ObjectInfo
		if err := json.Unmarshal(m.Data, &o); err != nil {
			return 0, fmt.Errorf("description %s: %w", meta, err)
		}
		if !o.Deleted {
			delete(content, prefix+o.NUID)
		}
	}
	for subject := range content {
		last, err := s.stream.GetLastMsgForSubject(ctx, subject)
		switch {
		case errors.Is(err, jetstream.ErrMsgNotFound):
			continue
		case err != nil:
			return removed, fmt.Errorf("look at content: %w", err)
		case !last.Time.Before(before):
			continue
		}
		if err := s.stream.Purge(ctx, jetstream.WithPurgeSubject(subject)); err != nil {
			return removed, fmt.Errorf("remove content: %w", err)
		}
		removed++
	}
	return removed, nil
}
