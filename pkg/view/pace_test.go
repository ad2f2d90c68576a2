package view_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
	"github.com/nightjar-edr/nightjar/pkg/store"
	"github.com/nightjar-edr/nightjar/pkg/view"
)

// A view with a pace folds the first message at once, those that follow
// together, and does not wait once a transaction is full or somebody waits for
// one of them.
func TestPaceFoldsTogether(t *testing.T) {
	b := natstest.Start(t).Bus(t, "test")
	if _, err := b.JS.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}}); err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(store.Options{Dir: filepath.Join(t.TempDir(), "v")})
	if err != nil {
		t.Fatal(err)
	}
	folds := make(chan int, 100)
	v, err := view.New(view.Config{Name: "v", Stream: "S", DB: db, JS: b.JS, Log: lifecycle.Discard(), Pace: time.Hour,
		Fold: func(_ *badger.Txn, msgs []view.Msg) (func(), error) {
			folds <- len(msgs)
			return nil, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, v, db)
	publish := func(n int) {
		for range n {
			if _, err := b.JS.Publish(t.Context(), "s", make([]byte, 512<<10)); err != nil {
				t.Fatal(err)
			}
		}
	}
	wait := func(seq uint64) {
		limited, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := v.Wait(limited, seq); err != nil {
			t.Fatal(err)
		}
	}
	publish(1)
	wait(1)
	publish(8) // 4 MiB
	wait(9)
	publish(2)
	wait(11)
	for _, want := range []int{1, 8, 2} {
		if got := <-folds; got != want {
			t.Errorf("%d messages in a fold, want %d", got, want)
		}
	}
	publish(1) // waits, and must not keep the view from ending
	stop()
}
