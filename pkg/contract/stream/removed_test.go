package stream_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
)

// owner is a replica of a stream's owner on a real server, to which something
// happens just before or just after it changes a stream for the first time.
type owner struct {
	jetstream.JetStream
	before, after func()
	// purge is called before it purges a stream.
	purge func()
}

func (o *owner) Stream(ctx context.Context, name string) (jetstream.Stream, error) {
	s, err := o.JetStream.Stream(ctx, name)
	return &owned{s, o}, err
}

type owned struct {
	jetstream.Stream
	by *owner
}

func (s *owned) Purge(ctx context.Context, opts ...jetstream.StreamPurgeOpt) error {
	if s.by.purge != nil {
		s.by.purge()
	}
	return s.Stream.Purge(ctx, opts...)
}

func (o *owner) around(change func()) {
	before, after := o.before, o.after
	o.before, o.after = nil, nil
	if before != nil {
		before()
	}
	change()
	if after != nil {
		after()
	}
}

func (o *owner) UpdateStream(ctx context.Context, cfg jetstream.StreamConfig) (s jetstream.Stream, err error) {
	o.around(func() { s, err = o.JetStream.UpdateStream(ctx, cfg) })
	return s, err
}

func (o *owner) CreateOrUpdateStream(ctx context.Context, cfg jetstream.StreamConfig) (s jetstream.Stream, err error) {
	o.around(func() { s, err = o.JetStream.CreateOrUpdateStream(ctx, cfg) })
	return s, err
}

func (o *owner) CreateOrUpdateObjectStore(ctx context.Context, cfg jetstream.ObjectStoreConfig) (s jetstream.ObjectStore, err error) {
	o.around(func() { s, err = o.JetStream.CreateOrUpdateObjectStore(ctx, cfg) })
	return s, err
}

const someEvents = "edr.events.9.03e31275-2277-d8e0-bb5f-480fac7ee4ef"

// Two owners that meet, whatever each of them does, overwrite the configuration
// that the other one has written. The mark does not end below what was removed,
// and neither a change of the limits nor an earlier mark gets lost.
func TestOwnersMeet(t *testing.T) {
	const old, limit = int64(32 << 20), int64(64 << 20)
	type js = jetstream.JetStream
	remove := func(below uint64) func(ctx context.Context, js js) error {
		return func(ctx context.Context, js jetstream.JetStream) error {
			return stream.Remove(ctx, js, stream.Events, below)
		}
	}
	ensure := func(ctx context.Context, js jetstream.JetStream) error {
		return stream.Ensure(ctx, js, stream.Events, stream.Limits{MaxBytes: limit})
	}
	for name, c := range map[string]struct {
		// slow is what an owner does that has looked at the stream before quick
		// is done by another one, and writes after it.
		slow, quick  func(ctx context.Context, js js) error
		first, limit int64
	}{
		"a removal behind one that reaches further":    {slow: remove(10), quick: remove(20), first: 20, limit: old},
		"a removal behind one that does not":           {slow: remove(20), quick: remove(10), first: 20, limit: old},
		"a start with another limit behind a removal":  {slow: ensure, quick: remove(10), first: 10, limit: limit},
		"a removal behind a start with another limit":  {slow: remove(10), quick: ensure, first: 10, limit: limit},
		"a start with another limit behind the same":   {slow: ensure, quick: ensure, first: 5, limit: limit},
		"a removal behind one that had nothing to say": {slow: remove(10), quick: remove(3), first: 10, limit: old},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := natstest.Start(t)
			one, two := srv.Bus(t, "one").JS, srv.Bus(t, "two").JS
			if err := stream.Ensure(t.Context(), one, stream.Events, stream.Limits{MaxBytes: old}); err != nil {
				t.Fatal(err)
			}
			for range 30 {
				if _, err := one.Publish(t.Context(), someEvents, []byte("x")); err != nil {
					t.Fatal(err)
				}
			}
			if err := remove(5)(t.Context(), one); err != nil {
				t.Fatal(err)
			}
			// The quick one goes on while the slow one writes, as far as it does
			// so by itself.
			met := make(chan error, 1)
			slow := &owner{JetStream: one, before: func() {
				wrote := make(chan struct{})
				go func() { met <- c.quick(t.Context(), &owner{JetStream: two, after: func() { close(wrote) }}) }()
				select {
				case <-wrote:
				case err := <-met:
					met <- err // it had nothing to write
				}
			}}
			if err := c.slow(t.Context(), slow); err != nil {
				t.Error(err)
			}
			if err := <-met; err != nil {
				t.Error(err)
			}
			s, err := one.Stream(t.Context(), stream.Events)
			if err != nil {
				t.Fatal(err)
			}
			info := s.CachedInfo()
			if mark := stream.RemovedBelow(info.Config); int64(info.State.FirstSeq) != c.first || int64(mark) != c.first || info.Config.MaxBytes != c.limit {
				t.Errorf("the stream begins at %d with mark %d and limit %d, want %d and %d", info.State.FirstSeq, mark, info.Config.MaxBytes, c.first, c.limit)
			}
		})
	}
}

// The same where the quick one is done with all of it before the slow one
// writes, and does not look again.
func TestOwnerWritesLate(t *testing.T) {
	for name, slow := range map[string]func(ctx context.Context, js jetstream.JetStream) error{
		"removal": func(ctx context.Context, js jetstream.JetStream) error {
			return stream.Remove(ctx, js, stream.Events, 10)
		},
		"start": func(ctx context.Context, js jetstream.JetStream) error {
			return stream.Ensure(ctx, js, stream.Events, stream.Limits{})
		},
		"start of an object store": func(ctx context.Context, js jetstream.JetStream) error {
			_, err := stream.EnsureObjects(ctx, js, stream.Artifacts, stream.Limits{})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			js := js(t)
			if err := stream.Ensure(t.Context(), js, stream.Events, stream.Limits{}); err != nil {
				t.Fatal(err)
			}
			objects, err := stream.EnsureObjects(t.Context(), js, stream.Artifacts, stream.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			for n := range 30 {
				if _, err := js.Publish(t.Context(), someEvents, []byte("x")); err != nil {
					t.Fatal(err)
				}
				if _, err := objects.PutString(t.Context(), fmt.Sprint(n), "x"); err != nil {
					t.Fatal(err)
				}
			}
			behind, _ := stream.ObjectStream(stream.Artifacts)
			o := &owner{JetStream: js, before: func() {
				for _, name := range []string{stream.Events, behind} {
					if err := stream.Remove(t.Context(), js, name, 20); err != nil {
						t.Error(err)
					}
				}
			}}
			if err := slow(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{stream.Events, behind} {
				if mark := stream.RemovedBelow(config(t, js, name)); mark != 20 {
					t.Errorf("the mark of %s is %d, want 20", name, mark)
				}
			}
		})
	}
}

// Nothing is removed before its mark stands, and a mark that another owner puts
// back just then is put right by the one who removes, as that other one cannot
// see it.
func TestMarkStandsBeforeRemoval(t *testing.T) {
	js := js(t)
	if err := stream.Ensure(t.Context(), js, stream.Events, stream.Limits{}); err != nil {
		t.Fatal(err)
	}
	for range 30 {
		if _, err := js.Publish(t.Context(), someEvents, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	stale, purged := config(t, js, stream.Events), false
	putBack := func() {
		if _, err := js.UpdateStream(t.Context(), stale); err != nil {
			t.Error(err)
		}
	}
	o := &owner{JetStream: js, after: putBack, purge: func() {
		purged = true
		if mark := stream.RemovedBelow(config(t, js, stream.Events)); mark != 20 {
			t.Errorf("messages are removed while the mark is %d", mark)
		}
		putBack()
	}}
	if err := stream.Remove(t.Context(), o, stream.Events, 20); err != nil {
		t.Fatal(err)
	}
	if mark := stream.RemovedBelow(config(t, js, stream.Events)); mark != 20 || !purged {
		t.Errorf("the mark is %d, removed %v", mark, purged)
	}
}

// Owners that remove and start at once, many times, leave the mark where the
// last removal was, and the limit as all of them want it. Meanwhile, too, where
// the stream begins the mark comes to be.
func TestOwnersRace(t *testing.T) {
	const messages, limit = 600, int64(64 << 20)
	srv := natstest.Start(t)
	js := srv.Bus(t, "test").JS
	if err := stream.Ensure(t.Context(), js, stream.Events, stream.Limits{MaxBytes: 32 << 20}); err != nil {
		t.Fatal(err)
	}
	for range messages {
		if _, err := js.Publish(t.Context(), someEvents, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	look := func() (first, mark uint64, limit int64) {
		t.Helper()
		s, err := js.Stream(t.Context(), stream.Events)
		if err != nil {
			t.Fatal(err)
		}
		info := s.CachedInfo()
		return info.State.FirstSeq, stream.RemovedBelow(info.Config), info.Config.MaxBytes
	}
	var owners sync.WaitGroup
	for n := range 4 {
		js, r := srv.Bus(t, fmt.Sprint("owner", n)).JS, rand.New(rand.NewPCG(uint64(n), 1))
		owners.Go(func() {
			for below := uint64(1); below < messages; below += r.Uint64N(40) {
				if err := stream.Remove(t.Context(), js, stream.Events, below); err != nil {
					t.Error(err)
				}
				if r.IntN(8) == 0 {
					if err := stream.Ensure(t.Context(), js, stream.Events, stream.Limits{MaxBytes: limit}); err != nil {
						t.Error(err)
					}
				}
			}
			if err := stream.Remove(t.Context(), js, stream.Events, messages+1-uint64(n)); err != nil {
				t.Error(err)
			}
		})
	}
	done := make(chan struct{})
	go func() { owners.Wait(); close(done) }()
	for ended := false; !ended; {
		select {
		case <-done:
			ended = true
		default:
		}
		first, mark, _ := look()
		for end := time.Now().Add(20 * time.Second); first > 1 && mark < first; _, mark, _ = look() {
			if time.Now().After(end) {
				t.Fatalf("the stream begins at %d with mark %d", first, mark)
			}
		}
	}
	if first, mark, is := look(); first != messages+1 || mark != messages+1 || is != limit {
		t.Errorf("the stream begins at %d with mark %d and limit %d", first, mark, is)
	}
}
