package ingest

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/objects"
	"github.com/nightjar-edr/nightjar/pkg/removal"
	"github.com/nightjar-edr/nightjar/pkg/retention"
	"github.com/nightjar-edr/nightjar/pkg/store"
	"github.com/nightjar-edr/nightjar/pkg/view"
)

const (
	// prefixArtifact begins the keys of artifacts, which go on with the name
	// of the artifact's object. It differs from all prefixes of logstore.
	prefixArtifact = "f/"
	artifactStream = "OBJ_" + stream.Artifacts
	// Subjects of an object store: the chunks of an object, and its
	// description.
	artifactChunks = "$O." + stream.Artifacts + ".C."
	artifactMetas  = "$O." + stream.Artifacts + ".M."
	// artifactPage is how many artifacts a page of a list holds.
	artifactPage = 2000
	// artifactPoll is how often a list that waits for the index looks again
	// what it waits for.
	artifactPoll = 50 * time.Millisecond
	// remainsAge is the age from which parts of a file that was never
	// completed are removed. No upload takes so long.
	remainsAge   = 24 * time.Hour
	tidyInterval = 6 * time.Hour
)

// artifactIndex is the index over the files in the object store artifacts,
// folded from their descriptions. Every replica has all of it.
type artifactIndex struct {
	db       *store.DB
	bus      *bus.Bus
	log      *slog.Logger
	view     *view.View
	removals *removal.Removals
	keeper   *retention.Keeper
	replicas int
	now      func() time.Time

	// objects, content and stream are set by ensure.
	objects jetstream.ObjectStore
	content *objects.Store
	stream  jetstream.Stream
}

func newArtifactIndex(cfg *Config, db *store.DB, removals *removal.Removals, m *view.Metrics) (*artifactIndex, error) {
	clock, err := retention.NewClock(db, cfg.Metrics, subsystem, cfg.Log, retention.Patience)
	if err != nil {
		return nil, err
	}
	x := &artifactIndex{db: db, bus: cfg.Bus, log: cfg.Log, removals: removals, replicas: cfg.Replicas, now: clock.Now}
	x.keeper = retention.New(retention.Config{
		JS: cfg.Bus.JS, Stream: artifactStream, Limits: stream.Limits{MaxAge: cfg.RetentionAlerts}, Clock: clock,
		Metrics: retention.NewMetrics(cfg.Metrics, subsystem), Log: cfg.Log,
	})
	x.view, err = view.New(view.Config{
		Name: "artifacts", Stream: artifactStream, Filters: []string{artifactMetas + ">"}, Compacted: true,
		DB: db, JS: cfg.Bus.JS, Room: cfg.Room, Log: cfg.Log, Metrics: m, Fold: x.fold,
	})
	return x, err
}

// storedArtifact is what the index holds of an artifact, with the sequence of
// its description.
type storedArtifact struct {
	message.Artifact
	Seq uint64 `json:"seq"`
}

// ensure makes the object store, which this service owns.
func (x *artifactIndex) ensure(ctx context.Context) error {
	var err error
	if x.objects, err = stream.EnsureObjects(ctx, x.bus.JS, stream.Artifacts, stream.Limits{Replicas: x.replicas}); err != nil {
		return err
	}
	if x.stream, err = x.bus.JS.Stream(ctx, artifactStream); err != nil {
		return fmt.Errorf("stream %s: %w", artifactStream, err)
	}
	x.content, err = objects.Open(ctx, x.bus.JS, stream.Artifacts)
	return err
}

// drop drops the artifacts that retention has removed.
func (x *artifactIndex) drop(ctx context.Context, below uint64) error {
	x.view.Ended(below)
	return retention.Drop(ctx, x.db, prefixArtifact, below, func(value []byte) (uint64, error) {
		var a storedArtifact
		err := json.Unmarshal(value, &a)
		return a.Seq, err
	})
}

// fold is a view.Fold. Parts of files are passed over.
func (x *artifactIndex) fold(txn *badger.Txn, msgs []view.Msg) (func(), error) {
	for i := range msgs {
		m := &msgs[i]
		name, err := base64.URLEncoding.DecodeString(strings.TrimPrefix(m.Subject, artifactMetas))
		if err != nil {
			x.log.Error("description of an artifact passed over", "subject", m.Subject, "sequence", m.Seq, "error", err)
			continue
		}
		id, err := message.ParseArtifactObject(string(name))
		if err != nil {
			continue
		}
		key := []byte(prefixArtifact + id.Object())
		var info jetstream.ObjectInfo
		if !m.Deleted() {
			if err := json.Unmarshal(m.Data, &info); err != nil {
				x.log.Error("description of an artifact passed over", "subject", m.Subject, "sequence", m.Seq, "error", err)
				continue
			}
		}
		if m.Deleted() || info.Deleted || m.Seq <= x.removed(id.Endpoint) {
			if err := txn.Delete(key); err != nil {
				return nil, err
			}
			continue
		}
		value, err := json.Marshal(storedArtifact{
			Artifact: message.Artifact{ArtifactID: id, Size: info.Size, SHA256: info.Metadata[message.ArtifactSHA256], Time: m.Time.UTC()},
			Seq:      m.Seq,
		})
		if err != nil {
			return nil, fmt.Errorf("encode artifact: %w", err)
		}
		if err := txn.Set(key, value); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// list answers message.ArtifactsList with what was in the object store when it
// was asked, or later.
func (x *artifactIndex) list(ctx context.Context, q message.ArtifactsListRequest) (message.ArtifactsListReply, error) {
	reply := message.ArtifactsListReply{Artifacts: []message.Artifact{}}
	if !subject.IsUUID(q.Endpoint) {
		return reply, fault.New(fault.Invalid, "endpoint is not a UUID")
	}
	if q.After != "" {
		if id, err := message.ParseArtifactObject(q.After); err != nil || id.Endpoint != q.Endpoint {
			return reply, fault.New(fault.Invalid, "after is no artifact of the endpoint")
		}
	}
	if err := x.removals.Obeyed(ctx, q.Removed); err != nil {
		return reply, fault.New(fault.Unavailable, "artifacts cannot be listed: %v", err)
	}
	if err := x.current(ctx); err != nil {
		return reply, err
	}
	err := x.db.View(func(txn *badger.Txn) error {
		prefix := []byte(prefixArtifact + q.Endpoint + "/")
		it := txn.NewIterator(badger.IteratorOptions{PrefetchValues: true, PrefetchSize: 100, Prefix: prefix})
		defer it.Close()
		from := prefix
		if q.After != "" {
			from = []byte(prefixArtifact + q.After + "\x00")
		}
		for it.Seek(from); it.Valid(); it.Next() {
			if n := len(reply.Artifacts); n == artifactPage {
				reply.Next = reply.Artifacts[n-1].Object()
				return nil
			}
			var a message.Artifact
			if err := it.Item().Value(func(v []byte) error { return json.Unmarshal(v, &a) }); err != nil {
				return fmt.Errorf("artifact %q: %w", it.Item().Key(), err)
			}
			reply.Artifacts = append(reply.Artifacts, a)
		}
		return nil
	})
	return reply, err
}

// current waits until the index has what the object store has now.
func (x *artifactIndex) current(ctx context.Context) error {
	for {
		// The last description may be one of a part that is removed before
		// the view gets it, so it is asked for anew.
		last, err := stream.LastSequence(ctx, x.bus.JS, artifactStream, artifactMetas+">")
		if err != nil {
			return fault.New(fault.Unavailable, "artifacts cannot be listed: %v", err)
		}
		waiting, cancel := context.WithTimeout(ctx, artifactPoll)
		err = x.view.Wait(waiting, last)
		cancel()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return fault.New(fault.Unavailable, "artifacts cannot be listed: the index is behind")
		case !errors.Is(err, context.DeadlineExceeded):
			return fault.New(fault.Unavailable, "artifacts cannot be listed: %v", err)
		}
	}
}

// tidyUp removes what remains of uploads that broke off, at the start and from
// time to time, until ctx ends.
func (x *artifactIndex) tidyUp(ctx context.Context) {
	lifecycle.Repeat(ctx, tidyInterval, func() {
		if n, err := x.tidy(ctx); err != nil && ctx.Err() == nil {
			x.log.Warn("remains of uploads not removed, will be tried again", "error", err)
		} else if n > 0 {
			x.log.Info("remains of uploads removed", "count", n)
		}
	})
}

// tidy removes parts of files, and content that never got a name, once they
// are older than remainsAge. It returns how many it removed.
func (x *artifactIndex) tidy(ctx context.Context) (removed int, err error) {
	before := x.now().Add(-remainsAge)
	// The content is listed before the names: what got its name meanwhile
	// is known then.
	info, err := x.stream.Info(ctx, jetstream.WithSubjectFilter(artifactChunks+"*"))
	if err != nil {
		return 0, fmt.Errorf("list content: %w", err)
	}
	list, err := x.objects.List(ctx, jetstream.ListObjectsShowDeleted())
	if err != nil && !errors.Is(err, jetstream.ErrNoObjectsFound) {
		return 0, fmt.Errorf("list objects: %w", err)
	}
	named := make(map[string]bool, len(list))
	for _, o := range list {
		named[o.NUID] = true
		if _, err := message.ParseArtifactObject(o.Name); err == nil || o.ModTime.After(before) {
			continue
		}
		if err := x.content.Remove(ctx, o.Name, o.NUID); err != nil {
			return removed, err
		}
		removed++
	}
	for s := range info.State.Subjects {
		if named[strings.TrimPrefix(s, artifactChunks)] {
			continue
		}
		last, err := x.stream.GetLastMsgForSubject(ctx, s)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		} else if err != nil {
			return removed, fmt.Errorf("look at content: %w", err)
		}
		if last.Time.After(before) {
			continue
		}
		if err := x.stream.Purge(ctx, jetstream.WithPurgeSubject(s)); err != nil {
			return removed, fmt.Errorf("remove %s: %w", s, err)
		}
		removed++
	}
	return removed, nil
}
