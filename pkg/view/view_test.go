package view_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
	"github.com/nightjar-edr/nightjar/pkg/store"
	"github.com/nightjar-edr/nightjar/pkg/view"
)

// counter counts every message once per subject, which shows any message that
// is folded twice or never.
type counter struct {
	t   *testing.T
	db  *store.DB
	bus *bus.Bus
	dir string
	// tooBig makes folds of more messages than this fail.
	tooBig int
	// filters select what is counted; all when there are none.
	filters []string
	// removed is the view's Removed.
	removed func(context.Context) (uint64, error)
	// hold is called before each fold.
	hold func()
	// room is Config.Room.
	room    func() error
	metrics *prometheus.Registry
	*view.View
	stop func()
}

func (c *counter) open() {
	c.t.Helper()
	db, err := store.Open(store.Options{Dir: c.dir, Sync: true})
	if err != nil {
		c.t.Fatal(err)
	}
	c.db = db
	c.metrics = prometheus.NewRegistry()
	c.View, err = view.New(view.Config{Name: "count", Stream: "S", Filters: c.filters, DB: db, JS: c.bus.JS, Log: lifecycle.Discard(), Fold: c.fold, Removed: c.removed,
		Metrics: view.NewMetrics(c.metrics, "test"), CheckEvery: 50 * time.Millisecond, Room: c.room})
	if err != nil {
		c.t.Fatal(err)
	}
	c.stop = run(c.t, c.View, db)
}

// run runs a view and returns what ends it and closes its store. The test must
// call that.
func run(t *testing.T, v *view.View, db *store.DB) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- v.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}
}

func (c *counter) fold(txn *badger.Txn, msgs []view.Msg) (func(), error) {
	if c.hold != nil {
		c.hold()
	}
	if c.tooBig > 0 && len(msgs) > c.tooBig {
		return nil, fmt.Errorf("set: %w", badger.ErrTxnTooBig)
	}
	for _, m := range msgs {
		n, err := get(txn, m.Subject)
		if err != nil {
			return nil, err
		}
		if err := txn.Set([]byte(m.Subject), binary.BigEndian.AppendUint64(nil, n+1)); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

func get(txn *badger.Txn, key string) (n uint64, err error) {
	item, err := txn.Get([]byte(key))
	if errors.Is(err, badger.ErrKeyNotFound) {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	err = item.Value(func(b []byte) error { n = binary.BigEndian.Uint64(b); return nil })
	return n, err
}

func (c *counter) count(subject string) (n uint64) {
	c.t.Helper()
	err := c.db.View(func(txn *badger.Txn) (err error) { n, err = get(txn, subject); return err })
	if err != nil {
		c.t.Fatal(err)
	}
	return n
}

func publish(t *testing.T, b *bus.Bus, subject string, n int) (last uint64) {
	t.Helper()
	for range n {
		ack, err := b.JS.Publish(t.Context(), subject, []byte("x"))
		if err != nil {
			t.Fatal(err)
		}
		last = ack.Sequence
	}
	return last
}

func setup(t *testing.T) *counter {
	t.Helper()
	b := natstest.Start(t).Bus(t, "test")
	createStream(t, b)
	return &counter{t: t, bus: b, dir: filepath.Join(t.TempDir(), "store")}
}

var streamConfig = jetstream.StreamConfig{Name: "S", Subjects: []string{"s.*"}}

func createStream(t *testing.T, b *bus.Bus) {
	t.Helper()
	if _, err := b.JS.CreateStream(t.Context(), streamConfig); err != nil {
		t.Fatal(err)
	}
}

func TestFoldsOnceAcrossRestartsAndRebuild(t *testing.T) {
	c := setup(t)
	publish(t, c.bus, "s.a", 700)
	c.open()
	last := publish(t, c.bus, "s.b", 300)
	if err := c.Wait(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c.Position() != last {
		t.Errorf("at %d, want %d", c.Position(), last)
	}
	c.stop()
	last = publish(t, c.bus, "s.a", 50)
	check := func(when string) {
		t.Helper()
		c.open()
		defer c.stop()
		if err := c.Wait(t.Context(), last); err != nil {
			t.Fatal(err)
		}
		if a, b := c.count("s.a"), c.count("s.b"); a != 750 || b != 300 {
			t.Errorf("%s: counted %d and %d, want 750 and 300", when, a, b)
		}
	}
	check("after a restart")
	c.dir = filepath.Join(t.TempDir(), "rebuilt")
	check("built again")
	c.dir, c.tooBig = filepath.Join(t.TempDir(), "halves"), 3
	check("with small transactions")
}

// TestNoRoom holds that a view writes nothing to its store while there is no room
// for it, is not ready, and goes on when there is.
func TestNoRoom(t *testing.T) {
	c := setup(t)
	var full atomic.Bool
	asked := make(chan struct{}, 1)
	c.room = func() error {
		if !full.Load() {
			return nil
		}
		select {
		case asked <- struct{}{}:
		default:
		}
		return errors.New("no room")
	}
	c.open()
	defer func() { c.stop() }()
	if err := c.Wait(t.Context(), publish(t, c.bus, "s.a", 10)); err != nil {
		t.Fatal(err)
	}
	full.Store(true)
	last := publish(t, c.bus, "s.a", 10)
	<-asked
	<-asked // the view is at it again, and has written nothing
	if n := c.count("s.a"); n != 10 || c.Ready() || c.Err() != nil {
		t.Errorf("%d messages, ready %v, %v, want 10 and not ready", n, c.Ready(), c.Err())
	}
	full.Store(false)
	if err := c.Wait(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitReady(t.Context()); err != nil || c.count("s.a") != 20 {
		t.Errorf("%d messages, %v, want 20", c.count("s.a"), err)
	}
	// It ends while it waits.
	full.Store(true)
	publish(t, c.bus, "s.a", 1)
	for len(asked) > 0 {
		<-asked
	}
	<-asked
	c.stop()
	full.Store(false)
	c.open()
	if err := c.Wait(t.Context(), last+1); err != nil || c.count("s.a") != 21 {
		t.Errorf("%d messages, %v, want 21", c.count("s.a"), err)
	}
}

func TestStoreInUse(t *testing.T) {
	dir := t.TempDir()
	db, err := store.Open(store.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if _, err := store.Open(store.Options{Dir: dir}); !errors.Is(err, store.ErrInUse) {
		t.Errorf("error %v, want %v", err, store.ErrInUse)
	}
}

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/golang/glog.(*fileSink).flushDaemon"),
		goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server.(*Server).startGoRoutine.func1"))
}

// What is folded leaves no goroutines behind.
func TestFoldsLeaveNoGoroutines(t *testing.T) {
	c := setup(t)
	c.open()
	defer c.stop()
	const folds = 100
	fold := func() {
		t.Helper()
		if err := c.Wait(t.Context(), publish(t, c.bus, "s.a", 1)); err != nil {
			t.Fatal(err)
		}
	}
	fold()
	before := runtime.NumGoroutine()
	for range folds {
		fold()
	}
	if more := runtime.NumGoroutine() - before; more > folds/2 {
		t.Errorf("%d more goroutines after %d folds", more, folds)
	}
}
