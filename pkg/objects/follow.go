package objects

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
)

// Snapshot is all objects of a store at one time.
type Snapshot struct {
	By map[string]Info
	// Revision is the sequence of the newest description, that of a deletion
	// included; 0 when there never was an object.
	Revision uint64
}

// errBehind means that a consumer stands at a server of a cluster whose copy of
// the store is behind.
var errBehind = errors.New("the server that was asked has not got all descriptions yet")

// Follow calls update with the objects that exist and again after changes,
// several of them at once where they come quickly, until ctx ends; then it
// returns nil. An update that asks for it is repeated after a while without a
// change. Its error ends Follow, and so does everything by which a change might
// be missed.
func (s *Store) Follow(ctx context.Context, log *slog.Logger, update func(context.Context, Snapshot) (again time.Duration, err error)) error {
	name, filter := stream.ObjectStream(s.name)
	newest, err := s.Last(ctx)
	if err != nil {
		return err
	}
	c, err := s.js.OrderedConsumer(ctx, name, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{filter}, DeliverPolicy: jetstream.DeliverLastPerSubjectPolicy,
	})
	if err != nil {
		return fmt.Errorf("consumer: %w", err)
	}
	defer s.forget(ctx, c)
	seen := &descriptions{snap: Snapshot{By: map[string]Info{}}, changed: make(chan struct{}, 1)}
	if info := c.CachedInfo(); info != nil && info.NumPending == 0 {
		if newest > 0 {
			return errBehind
		}
		seen.add(nil, 0, true)
	}
	failed := make(chan error, 1)
	fail := func(err error) {
		select {
		case failed <- err:
		default:
		}
	}
	consume, err := c.Consume(func(m jetstream.Msg) {
		meta, err := m.Metadata()
		if err != nil {
			fail(err)
			return
		}
		info := &Info{}
		if err := json.Unmarshal(m.Data(), &info.ObjectInfo); err != nil {
			log.Warn("description of an object is not readable", "store", s.name, "sequence", meta.Sequence.Stream, "error", err)
			info = nil
		} else {
			info.Seq, info.ModTime = meta.Sequence.Stream, meta.Timestamp.UTC()
		}
		if meta.NumPending == 0 && meta.Sequence.Stream < newest {
			fail(errBehind)
			return
		}
		seen.add(info, meta.Sequence.Stream, meta.NumPending == 0)
	}, append(stream.Following(s.js), jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) { fail(err) }))...)
	if err != nil {
		return fmt.Errorf("consume: %w", err)
	}
	defer consume.Stop()
	closed := consume.Closed() // each call makes a goroutine that waits
	var retry <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-closed:
			return errors.New("the consumer was closed")
		case <-seen.changed:
		case <-retry:
		}
		snap, complete := seen.snapshot()
		if !complete {
			continue
		}
		again, err := update(ctx, snap)
		if err != nil {
			return err
		}
		if retry = nil; again > 0 {
			retry = time.After(again)
		}
	}
}

// forget removes a consumer, which the server would keep for minutes.
func (s *Store) forget(ctx context.Context, c jetstream.Consumer) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), forgetTimeout)
	defer cancel()
	if info := c.CachedInfo(); info != nil {
		_ = s.stream.DeleteConsumer(ctx, info.Name)
	}
}

// descriptions are the newest ones of the objects of a store.
type descriptions struct {
	mu       sync.Mutex
	snap     Snapshot
	complete bool
	changed  chan struct{} // holds a value when snapshot gives something new
}

// add notes a description, nil for one that is not readable. last tells that
// no more are waiting.
func (d *descriptions) add(info *Info, revision uint64, last bool) {
	d.mu.Lock()
	switch {
	case info == nil:
	case info.Deleted:
		delete(d.snap.By, info.Name)
	default:
		d.snap.By[info.Name] = *info
	}
	d.snap.Revision = max(d.snap.Revision, revision)
	d.complete = d.complete || last
	d.mu.Unlock()
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

// snapshot returns the newest descriptions, and whether they are those of all
// objects.
func (d *descriptions) snapshot() (Snapshot, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.complete {
		return Snapshot{}, false
	}
	return Snapshot{By: maps.Clone(d.snap.By), Revision: d.snap.Revision}, true
}
