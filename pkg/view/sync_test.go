package view_test

import (
	"context"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
	"github.com/nightjar-edr/nightjar/pkg/store"
	"github.com/nightjar-edr/nightjar/pkg/view"
)

// bucketView runs a view of a bucket that keeps the last value of each key,
// or of those alone that match.
func bucketView(t *testing.T, b *bus.Bus, bucket string, keys ...string) (v *view.View, value func(key string) string) {
	t.Helper()
	db, err := store.Open(store.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	name, filter := stream.KVStream(bucket)
	filters := []string{filter}
	if len(keys) > 0 {
		filters = nil
	}
	for _, key := range keys {
		filters = append(filters, "$KV."+bucket+"."+key)
	}
	v, err = view.New(view.Config{Name: bucket, Stream: name, Filters: filters, Compacted: true, DB: db, JS: b.JS, Log: lifecycle.Discard(),
		Fold: func(txn *badger.Txn, msgs []view.Msg) (func(), error) {
			for _, m := range msgs {
				if err := txn.Set([]byte(m.Subject), m.Data); err != nil {
					return nil, err
				}
			}
			return nil, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(run(t, v, db))
	return v, func(key string) (s string) {
		err := db.View(func(txn *badger.Txn) error {
			item, err := txn.Get([]byte("$KV." + bucket + "." + key))
			if err != nil {
				return err
			}
			return item.Value(func(b []byte) error { s = string(b); return nil })
		})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
}

func TestSync(t *testing.T) {
	srv := natstest.Start(t)
	b := srv.Bus(t, "writer")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	kv, err := stream.EnsureKV(ctx, b.JS, "things", 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	v, value := bucketView(t, srv.Bus(t, "reader"), "things")
	if err := v.Sync(ctx); err != nil {
		t.Fatalf("of nothing: %v", err)
	}
	for i := range 100 {
		want := time.Duration(i).String()
		if _, err := kv.PutString(ctx, "key", want); err != nil {
			t.Fatal(err)
		}
		if err := v.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		if got := value("key"); got != want {
			t.Fatalf("after a sync the value is %q, want %q", got, want)
		}
	}
	ended, end := context.WithCancel(ctx)
	end()
	if err := v.Sync(ended); err == nil {
		t.Error("a sync with an ended context succeeds")
	}
}

// A view that is built when the last message has left the stream does not
// wait for it.
func TestSyncWithoutTheLastMessage(t *testing.T) {
	srv := natstest.Start(t)
	b := srv.Bus(t, "writer")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	kv, err := stream.EnsureKV(ctx, b.JS, "things", 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.PutString(ctx, "kept", "value"); err != nil {
		t.Fatal(err)
	}
	last, err := kv.PutString(ctx, "gone", "value")
	if err != nil {
		t.Fatal(err)
	}
	s, err := b.JS.Stream(ctx, "KV_things")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(ctx, jetstream.WithPurgeSubject("$KV.things.gone")); err != nil {
		t.Fatal(err)
	}
	v, value := bucketView(t, srv.Bus(t, "reader"), "things")
	if err := v.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	if v.Position() >= last || value("kept") != "value" {
		t.Errorf("position %d, value %q", v.Position(), value("kept"))
	}
}

// A view of some keys does not wait for messages that it never gets, and does
// wait for its own last one.
func TestSyncOfSomeKeys(t *testing.T) {
	srv := natstest.Start(t)
	b := srv.Bus(t, "writer")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	kv, err := stream.EnsureKV(ctx, b.JS, "things", 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	v, value := bucketView(t, srv.Bus(t, "reader"), "things", "*", "of.mine")
	put := func(key, value string) {
		t.Helper()
		if _, err := kv.PutString(ctx, key, value); err != nil {
			t.Fatal(err)
		}
	}
	put("of.others", "value")
	if err := v.Sync(ctx); err != nil {
		t.Fatalf("of nothing: %v", err)
	}
	for i := range 50 {
		want := time.Duration(i).String()
		key := []string{"key", "of.mine"}[i%2]
		put(key, want)
		put("of.others", want)
		if err := v.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		if got := value(key); got != want {
			t.Fatalf("after a sync %s is %q, want %q", key, got, want)
		}
	}
}
