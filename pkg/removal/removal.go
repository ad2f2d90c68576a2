package removal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/failpoint"
	"github.com/nightjar-edr/nightjar/pkg/view"
)

// Prefixes of the keys in the store. What follows is the endpoint's UUID.
const (
	prefixRemoval = "\x00removal/"
	// prefixUncleared begins the keys of removals whose streams are not known
	// to be cleared. The value is the revision.
	prefixUncleared = "\x00uncleared/"
)

// retryAfter is how long a clearing that failed waits to be tried again,
// clearTimeout bounds it.
const (
	retryAfter   = time.Second
	clearTimeout = 5 * time.Minute
)

// Removal is the last removal of what an endpoint had stored.
type Removal struct {
	Endpoint string `json:"endpoint"`
	// Revision is that of the record in the bucket.
	Revision uint64                `json:"revision"`
	Record   message.RemovalRecord `json:"record"`
}

// Config describes the removals of a service.
type Config struct {
	// View is what they are kept with: its store, connection, log and metrics.
	View view.Config
	// Obey, if not nil, makes the service act by a removal. It may be called
	// again with the same one, and an error ends the view. Generation and the
	// others tell of the removal already.
	Obey func(Removal) error
	// Clear has, for each stream of the service that holds something of
	// endpoints, what clears it of what was removed. All are called until all
	// have returned nil.
	Clear map[string]func(context.Context, Removal) error
}

// Removals are the removals that a service knows. Make them with New and run
// them with Run.
type Removals struct {
	cfg  Config
	view *view.View

	mu sync.Mutex
	by map[string]Removal
	// reach is the last sequence of each stream up to which something may have
	// been removed.
	reach map[string]uint64
	// uncleared has the revisions of removals whose streams are to be cleared.
	uncleared map[string]uint64
	// changed is closed and replaced when uncleared changes.
	changed chan struct{}
}

// New reads the removals that the store knows. It touches no stream yet.
func New(cfg Config) (*Removals, error) {
	r := &Removals{cfg: cfg, by: map[string]Removal{}, reach: map[string]uint64{}, uncleared: map[string]uint64{}, changed: make(chan struct{})}
	if err := r.load(); err != nil {
		return nil, fmt.Errorf("removals: %w", err)
	}
	v := cfg.View
	name, filter := stream.KVStream(stream.Removed)
	v.Name, v.Stream, v.Filters, v.Compacted, v.Fold = "removals", name, []string{filter}, true, r.fold
	var err error
	r.view, err = view.New(v)
	return r, err
}

func (r *Removals) load() error {
	return r.cfg.View.DB.View(func(txn *badger.Txn) error {
		for _, prefix := range []string{prefixRemoval, prefixUncleared} {
			it := txn.NewIterator(badger.IteratorOptions{PrefetchValues: true, PrefetchSize: 100, Prefix: []byte(prefix)})
			defer it.Close()
			for it.Rewind(); it.Valid(); it.Next() {
				endpoint := string(it.Item().Key()[len(prefix):])
				err := it.Item().Value(func(b []byte) error {
					if prefix == prefixUncleared {
						var revision uint64
						err := json.Unmarshal(b, &revision)
						r.uncleared[endpoint] = revision
						return err
					}
					var known Removal
					err := json.Unmarshal(b, &known)
					r.learn(known)
					return err
				})
				if err != nil {
					return fmt.Errorf("read %q: %w", it.Item().Key(), err)
				}
			}
		}
		return nil
	})
}

// learn takes a removal into memory.
func (r *Removals) learn(known Removal) {
	r.by[known.Endpoint] = known
	for _, ends := range []map[string]uint64{known.Record.Ends, known.Record.Settled} {
		for name, seq := range ends {
			r.reach[name] = max(r.reach[name], seq)
		}
	}
}

// fold is a view.Fold. A removal is a fact when it is read, so memory knows of
// it before it is obeyed and committed.
func (r *Removals) fold(txn *badger.Txn, msgs []view.Msg) (func(), error) {
	uncleared := map[string]uint64{}
	for i := range msgs {
		m := &msgs[i]
		known := Removal{Endpoint: strings.TrimPrefix(m.Subject, "$KV."+stream.Removed+"."), Revision: m.Seq}
		if err := json.Unmarshal(m.Data, &known.Record); err != nil || m.Deleted() || !subject.IsUUID(known.Endpoint) {
			r.cfg.View.Log.Error("record of a removal cannot be read, passing over it", "subject", m.Subject, "revision", m.Seq, "error", err)
			continue
		}
		r.mu.Lock()
		r.learn(known)
		r.mu.Unlock()
		if r.cfg.Obey != nil {
			if err := r.cfg.Obey(known); err != nil {
				return nil, fmt.Errorf("removal of %s: %w", known.Endpoint, err)
			}
		}
		value, err := json.Marshal(known)
		if err != nil {
			return nil, fmt.Errorf("encode removal of %s: %w", known.Endpoint, err)
		}
		if err := txn.Set([]byte(prefixRemoval+known.Endpoint), value); err != nil {
			return nil, err
		}
		if len(r.cfg.Clear) == 0 {
			continue
		}
		if err := txn.Set([]byte(prefixUncleared+known.Endpoint), fmt.Append(nil, known.Revision)); err != nil {
			return nil, err
		}
		uncleared[known.Endpoint] = known.Revision
	}
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		maps.Copy(r.uncleared, uncleared)
		r.tell()
	}, nil
}

// tell says that uncleared has changed. The caller holds the lock.
func (r *Removals) tell() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// View is the view of the bucket. What it has passed is obeyed.
func (r *Removals) View() *view.View { return r.view }

// Run follows the bucket and clears streams until ctx ends, as View.Run does.
func (r *Removals) Run(ctx context.Context) error {
	var work sync.WaitGroup
	defer work.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if len(r.cfg.Clear) > 0 {
		work.Go(func() { r.clear(ctx) })
	}
	return r.view.Run(ctx)
}

// clear clears streams until ctx ends.
func (r *Removals) clear(ctx context.Context) {
	for {
		var wait <-chan time.Time
		for endpoint, revision := range r.open() {
			if err := r.clearOne(ctx, endpoint, revision); err != nil && ctx.Err() == nil {
				r.cfg.View.Log.Warn("what was removed is not cleared from the streams yet, trying again", "endpoint", endpoint, "error", err)
				wait = time.After(retryAfter)
			}
			if ctx.Err() != nil {
				return
			}
		}
		r.mu.Lock()
		changed, done := r.changed, len(r.uncleared) == 0
		r.mu.Unlock()
		if !done && wait == nil {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-wait:
		}
	}
}

// open returns the removals whose streams are to be cleared.
func (r *Removals) open() map[string]uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.uncleared)
}

func (r *Removals) clearOne(ctx context.Context, endpoint string, revision uint64) error {
	ctx, cancel := context.WithTimeout(ctx, clearTimeout)
	defer cancel()
	known, _ := r.Get(endpoint)
	for name, clear := range r.cfg.Clear {
		failpoint.HitIn(failpoint.RemovalBeforeClear, name)
		if err := clear(ctx, known); err != nil {
			return err
		}
		failpoint.HitIn(failpoint.RemovalAfterClear, name)
	}
	// A later removal is cleared by itself.
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.uncleared[endpoint] != revision {
		return nil
	}
	err := r.cfg.View.DB.Update(func(txn *badger.Txn) error {
		item, err := txn.Get([]byte(prefixUncleared + endpoint))
		if err != nil {
			return err
		}
		var stored uint64
		if err := item.Value(func(b []byte) error { return json.Unmarshal(b, &stored) }); err != nil || stored != revision {
			return err
		}
		return txn.Delete([]byte(prefixUncleared + endpoint))
	})
	if err != nil && !errors.Is(err, badger.ErrKeyNotFound) {
		return fmt.Errorf("note that %s is cleared: %w", endpoint, err)
	}
	delete(r.uncleared, endpoint)
	r.tell()
	return nil
}

// Get returns the last removal of an endpoint, if there was one.
func (r *Removals) Get(endpoint string) (Removal, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known, ok := r.by[endpoint]
	return known, ok
}

// Generation returns the generation of an endpoint's last removal, 0 if there
// was none. What has a lower one is removed.
func (r *Removals) Generation(endpoint string) uint64 {
	known, _ := r.Get(endpoint)
	return known.Record.Generation
}

// All returns the last removal of each endpoint that had one.
func (r *Removals) All() []Removal {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]Removal, 0, len(r.by))
	for _, known := range r.by {
		list = append(list, known)
	}
	return list
}

// Reach returns the function that a view of a stream is configured with, as
// view.Config.Removed.
func (r *Removals) Reach(name string) func(context.Context) (uint64, error) {
	return func(ctx context.Context) (uint64, error) {
		if err := r.view.Sync(ctx); err != nil {
			return 0, err
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.reach[name], nil
	}
}

// Obeyed returns when the service acts by all removals up to a revision of the
// bucket.
func (r *Removals) Obeyed(ctx context.Context, revision uint64) error {
	return r.view.Wait(ctx, revision)
}

// Cleared returns when the service acts by an endpoint's removal of a revision
// and has cleared its streams.
func (r *Removals) Cleared(ctx context.Context, endpoint string, revision uint64) error {
	if err := r.Obeyed(ctx, revision); err != nil {
		return err
	}
	for {
		r.mu.Lock()
		_, open := r.uncleared[endpoint]
		changed := r.changed
		r.mu.Unlock()
		if !open {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("clearing of streams: %w", ctx.Err())
		}
	}
}
