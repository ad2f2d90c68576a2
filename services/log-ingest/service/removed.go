package ingest

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/removal"
	"github.com/nightjar-edr/nightjar/pkg/store"
	"github.com/nightjar-edr/nightjar/services/log-ingest/internal/logstore"
)

// freshness is how long a count waits for what is in the streams already.
const freshness = 3 * time.Second

// obey removes what the store holds of a removal. Lines of an endpoint are in
// one part at most, be it complete, in the making or to be left. Where there is
// none, they are being dropped, or one that is made later passes them over.
func (s *Service) obey(r removal.Removal) error {
	if err := s.obeyInPart(r); err != nil {
		return err
	}
	return s.artifacts.view.Exclusive(func() error { return s.artifacts.forget(r) })
}

func (s *Service) obeyInPart(r removal.Removal) error {
	s.holding.changing.Lock()
	defer s.holding.changing.Unlock()
	t := s.holding.part(subject.PartitionOf(r.Endpoint))
	if t == nil {
		return nil
	}
	return t.forget(r.Endpoint, r.Record.Generation)
}

// obeyed waits until the store obeys all removals up to a revision.
func (s *Service) obeyed(ctx context.Context, revision uint64) error {
	if err := s.removals.Obeyed(ctx, revision); err != nil {
		return fault.New(fault.Unavailable, "a removal is not known here yet: %v", err)
	}
	return nil
}

// cleared answers message.ArtifactsCleared.
func (s *Service) cleared(ctx context.Context, q message.ClearedRequest) (struct{}, error) {
	if err := s.removals.Cleared(ctx, q.Endpoint, q.Revision); err != nil {
		return struct{}{}, fault.New(fault.Unavailable, "%v", err)
	}
	return struct{}{}, nil
}

// count answers message.LogsCount. What the streams hold is waited for, but not
// for long.
func (s *Service) count(ctx context.Context, q message.LogsCountRequest) (reply message.LogsCountReply, err error) {
	if !subject.IsUUID(q.Endpoint) {
		return reply, fault.New(fault.Invalid, "endpoint is not a UUID")
	}
	partition := subject.PartitionOf(q.Endpoint)
	t := s.holding.part(partition)
	if t == nil || !s.holding.answers(partition) {
		return reply, notAnswered(partition)
	}
	if err := s.obeyed(ctx, q.Removed); err != nil {
		return reply, err
	}
	fresh, cancel := context.WithTimeout(ctx, freshness)
	defer cancel()
	for _, v := range t.views() {
		if err := v.Sync(fresh); err != nil && (ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded)) {
			return reply, fault.New(fault.Unavailable, "what is stored cannot be counted: %v", err)
		}
	}
	if err := s.artifacts.current(ctx); err != nil {
		return reply, err
	}
	if reply.Events, err = s.reader.Count(logstore.Events, q.Endpoint); err != nil {
		return reply, err
	}
	if reply.Alerts, err = s.reader.Count(logstore.Alerts, q.Endpoint); err != nil {
		return reply, err
	}
	if !s.holding.answers(partition) {
		return message.LogsCountReply{}, notAnswered(partition) // it may have been dropped meanwhile
	}
	err = s.artifacts.each(q.Endpoint, func([]byte, storedArtifact) { reply.Artifacts++ })
	return reply, err
}

// removed returns the sequence up to which an endpoint's artifacts are removed.
func (x *artifactIndex) removed(endpoint string) uint64 {
	r, _ := x.removals.Get(endpoint)
	return r.Record.Ends[artifactStream]
}

// each calls f for each of an endpoint's artifacts.
func (x *artifactIndex) each(endpoint string, f func(key []byte, a storedArtifact)) error {
	return x.db.View(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{PrefetchValues: true, PrefetchSize: 100, Prefix: []byte(prefixArtifact + endpoint + "/")})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			var a storedArtifact
			if err := it.Item().Value(func(v []byte) error { return json.Unmarshal(v, &a) }); err != nil {
				return fmt.Errorf("artifact %q: %w", it.Item().Key(), err)
			}
			f(it.Item().KeyCopy(nil), a)
		}
		return nil
	})
}

// forget takes what is removed out of the index. It must be called within the
// view's Exclusive.
func (x *artifactIndex) forget(r removal.Removal) error {
	var keys [][]byte
	err := x.each(r.Endpoint, func(key []byte, a storedArtifact) {
		if a.Seq <= r.Record.Ends[artifactStream] {
			keys = append(keys, key)
		}
	})
	if err != nil {
		return err
	}
	if err := store.Delete(x.db, keys); err != nil {
		return fmt.Errorf("forget artifacts: %w", err)
	}
	return nil
}

// clear removes from the object store what is removed of an endpoint's
// artifacts: files and parts of files. A description goes behind its content, so
// that a removal that breaks off is taken up again.
func (x *artifactIndex) clear(ctx context.Context, r removal.Removal) error {
	end := r.Record.Ends[artifactStream]
	s, err := x.bus.JS.Stream(ctx, artifactStream)
	if err != nil {
		return fmt.Errorf("stream %s: %w", artifactStream, err)
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(artifactMetas+">"))
	if err != nil {
		return fmt.Errorf("list objects: %w", err)
	}
	for meta := range info.State.Subjects {
		name, err := base64.URLEncoding.DecodeString(strings.TrimPrefix(meta, artifactMetas))
		if err != nil || !strings.HasPrefix(string(name), r.Endpoint+"/") {
			continue
		}
		m, err := s.GetLastMsgForSubject(ctx, meta)
		if errors.Is(err, jetstream.ErrMsgNotFound) || err == nil && m.Sequence > end {
			continue
		} else if err != nil {
			return fmt.Errorf("look at an object: %w", err)
		}
		var o jetstream.ObjectInfo
		if err := json.Unmarshal(m.Data, &o); err != nil {
			x.log.Error("description of an artifact cannot be read, its content is left to be tidied up", "subject", meta, "sequence", m.Sequence, "error", err)
		} else if err := s.Purge(ctx, jetstream.WithPurgeSubject(stream.ObjectChunks(stream.Artifacts, o.NUID))); err != nil {
			return fmt.Errorf("remove content: %w", err)
		}
		if err := s.Purge(ctx, jetstream.WithPurgeSubject(meta), jetstream.WithPurgeSequence(end+1)); err != nil {
			return fmt.Errorf("remove description: %w", err)
		}
	}
	return nil
}
