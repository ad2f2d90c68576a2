package view_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
	"github.com/nightjar-edr/nightjar/pkg/store"
	"github.com/nightjar-edr/nightjar/pkg/view"
)

// metric returns the value of the view's metric.
func (c *counter) metric(name string) float64 {
	c.t.Helper()
	families, err := c.metrics.Gather()
	if err != nil {
		c.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "nightjar_test_"+name {
			m := f.GetMetric()[0]
			return m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	c.t.Fatalf("no metric %s", name)
	return 0
}

// until repeats a check until it passes.
func until(t *testing.T, what string, check func() error) {
	t.Helper()
	err := check()
	for end := time.Now().Add(20 * time.Second); err != nil && time.Now().Before(end); err = check() {
		time.Sleep(5 * time.Millisecond)
	}
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// gap demands that the view stands still at a gap and says so.
func (c *counter) gap(folded uint64) {
	c.t.Helper()
	until(c.t, "gap", func() error {
		if err := c.Err(); !errors.Is(err, view.ErrGap) {
			return fmt.Errorf("error %v, want %v", err, view.ErrGap)
		}
		return nil
	})
	if n := c.count("s.a"); c.Ready() || n != folded || c.metric("view_gap") != 1 {
		c.t.Errorf("ready %v with %d messages, metric %v, want false with %d and 1", c.Ready(), n, c.metric("view_gap"), folded)
	}
	if err := c.WaitReady(c.t.Context()); !errors.Is(err, view.ErrGap) {
		c.t.Errorf("who waits gets %v", err)
	}
}

func recreate(t *testing.T, b *bus.Bus) {
	t.Helper()
	if err := b.JS.DeleteStream(t.Context(), "S"); err != nil {
		t.Fatal(err)
	}
	// The server may still be at the files of the one before.
	until(t, "create stream", func() error {
		_, err := b.JS.CreateStream(t.Context(), streamConfig)
		return err
	})
}

// purge removes what is before a sequence, as expiry does.
func purge(t *testing.T, b *bus.Bus, seq uint64) {
	t.Helper()
	s, err := b.JS.Stream(t.Context(), "S")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(t.Context(), jetstream.WithPurgeSequence(seq)); err != nil {
		t.Fatal(err)
	}
}

// stopped returns a view that has folded 10 messages and was stopped.
func stopped(t *testing.T, filters []string) *counter {
	t.Helper()
	c := setup(t)
	c.filters = filters
	c.open()
	if err := c.Wait(t.Context(), publish(t, c.bus, "s.a", 10)); err != nil {
		t.Fatal(err)
	}
	c.stop()
	return c
}

// away returns a view that was stopped when 20 more messages came.
func away(t *testing.T, filters []string) *counter {
	t.Helper()
	c := stopped(t, filters)
	publish(t, c.bus, "s.a", 20)
	return c
}

// TestRetentionIsNoGap has messages end with their retention before a view that
// was away came to them: it goes on and says how many it has not seen. One
// message more that is missing is a gap.
func TestRetentionIsNoGap(t *testing.T) {
	for _, filters := range [][]string{nil, {"s.a"}} {
		t.Run(fmt.Sprint(filters), func(t *testing.T) {
			c := away(t, filters)
			if err := stream.Remove(t.Context(), c.bus.JS, "S", 21); err != nil {
				t.Fatal(err)
			}
			c.open()
			if err := c.Wait(t.Context(), 30); err != nil {
				t.Fatal(err)
			}
			if n, missed := c.count("s.a"), c.metric("view_missing_messages_total"); n != 20 || missed != 10 || c.metric("view_gap") != 0 {
				t.Errorf("%d messages, %v missed, want 20 and 10", n, missed)
			}
			c.stop()
			publish(t, c.bus, "s.a", 20)
			if err := stream.Remove(t.Context(), c.bus.JS, "S", 41); err != nil {
				t.Fatal(err)
			}
			purge(t, c.bus, 42)
			c.open()
			c.gap(20)
			c.stop()
		})
	}
}

// What retention has removed while a view had it in hand is passed over, and
// counted as not seen; what is being folded at that moment is committed first.
func TestEndedIsPassedOver(t *testing.T) {
	c := setup(t)
	folding, goOn := make(chan struct{}, 10), make(chan struct{})
	c.hold = func() { folding <- struct{}{}; <-goOn }
	var held, waits atomic.Bool
	c.room = func() error {
		if !held.Load() {
			return nil
		}
		waits.Store(true)
		return errors.New("held by the test")
	}
	c.open()
	defer c.stop()
	publish(t, c.bus, "s.a", 1)
	<-folding
	ended := make(chan uint64, 1)
	go func() { c.Ended(2); ended <- c.Position() }()
	select {
	case at := <-ended:
		t.Errorf("told while the first message is being folded, at %d", at)
	case <-time.After(100 * time.Millisecond):
	}
	held.Store(true)
	publish(t, c.bus, "s.a", 20)
	close(goOn)
	if at := <-ended; at != 1 {
		t.Errorf("told when the view is at %d, want 1", at)
	}
	until(t, "messages are in hand", func() error {
		if !waits.Load() {
			return errors.New("none")
		}
		return nil
	})
	c.Ended(12)
	c.Ended(5) // says nothing new
	held.Store(false)
	if err := c.Wait(t.Context(), 21); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, missed := c.count("s.a"), c.metric("view_missing_messages_total"); n != 11 || missed != 10 {
		t.Errorf("%d messages, %v missed, want 11 and 10", n, missed)
	}
	c.Ended(100)
	if err := c.Wait(t.Context(), publish(t, c.bus, "s.a", 3)); err != nil {
		t.Fatal(err)
	}
	if n := c.count("s.a"); n != 11 {
		t.Errorf("%d messages, want 11: all others have ended", n)
	}
}

// marking puts the mark of retention right when somebody has looked twice at a
// stream that begins behind it.
type marking struct {
	jetstream.JetStream
	looks int
}

func (m *marking) Stream(ctx context.Context, name string) (jetstream.Stream, error) {
	s, err := m.JetStream.Stream(ctx, name)
	if err != nil {
		return nil, err
	}
	if info := s.CachedInfo(); info.State.FirstSeq > stream.RemovedBelow(info.Config) {
		if m.looks++; m.looks == 2 {
			err = stream.Remove(ctx, m.JetStream, name, info.State.FirstSeq)
		}
	}
	return s, err
}

// A mark that owners that met have put too low, and put right a moment later,
// makes no gap.
func TestMarkThatIsPutRight(t *testing.T) {
	for _, filters := range [][]string{nil, {"s.a"}} {
		t.Run(fmt.Sprint(filters), func(t *testing.T) {
			c := away(t, filters)
			if err := stream.Remove(t.Context(), c.bus.JS, "S", 5); err != nil {
				t.Fatal(err)
			}
			purge(t, c.bus, 21)
			c.bus.JS = &marking{JetStream: c.bus.JS}
			c.open()
			defer c.stop()
			until(t, "folded or not", func() error {
				if c.Position() != 30 && c.Err() == nil {
					return errors.New("neither")
				}
				return nil
			})
			if n, missed := c.count("s.a"), c.metric("view_missing_messages_total"); n != 20 || missed != 10 || c.Err() != nil {
				t.Errorf("%d messages, %v missed, want 20 and 10: %v", n, missed, c.Err())
			}
		})
	}
}

func TestGapIsNoticed(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, c *counter){
		"recreated": func(t *testing.T, c *counter) {
			recreate(t, c.bus)
			publish(t, c.bus, "s.a", 30)
		},
		"head lost": func(t *testing.T, c *counter) {
			publish(t, c.bus, "s.a", 10)
			purge(t, c.bus, 15)
		},
		"all lost": func(t *testing.T, c *counter) {
			purge(t, c.bus, publish(t, c.bus, "s.a", 10)+1)
		},
		"tail lost": func(t *testing.T, c *counter) { c.move(+5) },
	} {
		for _, filters := range [][]string{nil, {"s.a"}} {
			t.Run(fmt.Sprint(name, filters), func(t *testing.T) {
				c := stopped(t, filters)
				damage(t, c)
				c.open()
				defer c.stop()
				c.gap(10)
			})
		}
	}
}

// move changes the position in the store, as if the stream had been reset to
// a time before.
func (c *counter) move(by uint64) {
	c.t.Helper()
	c.edit(func(pos map[string]any) { pos["seq"] = uint64(pos["seq"].(float64)) + by })
}

// edit changes what the store says of the position.
func (c *counter) edit(change func(pos map[string]any)) {
	c.t.Helper()
	db, err := store.Open(store.Options{Dir: c.dir})
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	err = db.Update(func(txn *badger.Txn) error {
		key := []byte("\x00view/count")
		item, err := txn.Get(key)
		if err != nil {
			return err
		}
		text, err := item.ValueCopy(nil)
		if err != nil {
			return err
		}
		var pos map[string]any
		if err := json.Unmarshal(text, &pos); err != nil {
			return err
		}
		change(pos)
		if text, err = json.Marshal(pos); err != nil {
			return err
		}
		return txn.Set(key, text)
	})
	if err != nil {
		c.t.Fatal(err)
	}
}

// A stream that is created anew while the view follows it is noticed, too,
// before and after it has grown beyond the position.
func TestRecreatedWhileRunning(t *testing.T) {
	for _, n := range []int{0, 3, 30} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			c := setup(t)
			c.open()
			defer c.stop()
			if err := c.Wait(t.Context(), publish(t, c.bus, "s.a", 10)); err != nil {
				t.Fatal(err)
			}
			recreate(t, c.bus)
			publish(t, c.bus, "s.b", n)
			c.gap(10)
		})
	}
}

// Messages that expire before a slow view has read them are a gap.
func TestHeadLostWhileRunning(t *testing.T) {
	c := setup(t)
	held := make(chan struct{})
	c.hold = func() { <-held }
	c.open()
	defer c.stop()
	futures := 0
	for range 4000 { // more than is read ahead
		if _, err := c.bus.JS.PublishAsync("s.a", []byte("x")); err != nil {
			t.Fatal(err)
		}
		if futures++; futures%200 == 0 {
			<-c.bus.JS.PublishAsyncComplete()
		}
	}
	<-c.bus.JS.PublishAsyncComplete()
	purge(t, c.bus, 3900)
	close(held)
	until(t, "gap", func() error {
		if err := c.Err(); !errors.Is(err, view.ErrGap) {
			return fmt.Errorf("error %v at %d", err, c.Position())
		}
		return nil
	})
	if p := c.Position(); c.Ready() || p >= 3900 || p != c.count("s.a") {
		t.Errorf("ready %v at %d with %d messages", c.Ready(), p, c.count("s.a"))
	}
}

// What somebody deleted from within the stream is counted, and what follows
// is folded, for a view that is built anew would miss it as well.
func TestDeletedFromWithin(t *testing.T) {
	c := setup(t)
	c.open()
	if err := c.Wait(t.Context(), publish(t, c.bus, "s.a", 5)); err != nil {
		t.Fatal(err)
	}
	c.stop()
	last := publish(t, c.bus, "s.a", 10)
	s, err := c.bus.JS.Stream(t.Context(), "S")
	if err != nil {
		t.Fatal(err)
	}
	for _, seq := range []uint64{6, 9, 10} {
		if err := s.DeleteMsg(t.Context(), seq); err != nil {
			t.Fatal(err)
		}
	}
	c.open()
	defer c.stop()
	if err := c.Wait(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := c.count("s.a"); !c.Ready() || n != 12 || c.metric("view_missing_messages_total") != 3 || c.metric("view_gap") != 0 {
		t.Errorf("ready %v with %d messages, %v missing", c.Ready(), n, c.metric("view_missing_messages_total"))
	}
}

// A view that gets few of a stream's messages does not take it for a gap that
// the others expire, neither while it runs nor after a restart.
func TestOthersExpire(t *testing.T) {
	c := setup(t)
	c.filters = []string{"s.a"}
	c.open()
	if err := c.Wait(t.Context(), publish(t, c.bus, "s.a", 5)); err != nil {
		t.Fatal(err)
	}
	last := publish(t, c.bus, "s.b", 100)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := c.Wait(ctx, last); err != nil {
		t.Fatal(err)
	}
	purge(t, c.bus, last)
	if err := c.Wait(ctx, publish(t, c.bus, "s.a", 1)); err != nil {
		t.Fatal(err)
	}
	last = publish(t, c.bus, "s.b", 100)
	if err := c.Wait(ctx, last); err != nil {
		t.Fatal(err)
	}
	c.stop()
	purge(t, c.bus, last)
	c.open()
	defer c.stop()
	if err := c.Wait(ctx, publish(t, c.bus, "s.a", 1)); err != nil {
		t.Fatal(err)
	}
	if n := c.count("s.a"); n != 7 || c.Err() != nil {
		t.Errorf("%d messages, %v", n, c.Err())
	}
}

// A server that comes back with another stream of the same name, while the
// view waits for it, does not get away with it.
func TestServerReplaced(t *testing.T) {
	port := -1
	serve := func() *server.Server {
		srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true})
		if err != nil {
			t.Fatal(err)
		}
		srv.Start()
		if !srv.ReadyForConnections(10 * time.Second) {
			t.Fatal("nats server is not ready")
		}
		port = srv.Addr().(*net.TCPAddr).Port
		return srv
	}
	stop := func(srv *server.Server) {
		srv.Shutdown()
		srv.WaitForShutdown()
	}
	srv := serve()
	nc, err := nats.Connect(srv.ClientURL(), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	c := &counter{t: t, bus: &bus.Bus{NC: nc, JS: js}, dir: t.TempDir()}
	createStream(t, c.bus)
	c.open()
	defer c.stop()
	if err := c.Wait(t.Context(), publish(t, c.bus, "s.a", 10)); err != nil {
		t.Fatal(err)
	}
	stop(srv)
	srv = serve()
	defer stop(srv)
	until(t, "create stream", func() error {
		_, err := js.CreateStream(t.Context(), streamConfig)
		return err
	})
	publish(t, c.bus, "s.b", 20)
	c.gap(10)
}

// What a removal has taken while the view was away is no gap, unless it stands
// behind what the removal reaches. What may have ended with its retention as well
// is counted.
func TestRemovedIsNoGap(t *testing.T) {
	for name, c := range map[string]struct {
		reach, below uint64
		missed       float64
		gap          bool
	}{
		"removed":                               {reach: 19},
		"behind the removal":                    {reach: 18, gap: true},
		"no removal":                            {gap: true},
		"all below the mark, too":               {reach: 19, below: 20, missed: 9},
		"some below the mark, the rest removed": {reach: 19, below: 15, missed: 4},
		"the mark was reached before":           {reach: 19, below: 11},
		"behind both":                           {reach: 18, below: 19, gap: true},
	} {
		for _, filters := range [][]string{nil, {"s.a"}} {
			t.Run(fmt.Sprint(name, filters), func(t *testing.T) {
				c0 := setup(t)
				c0.filters, c0.removed = filters, func(context.Context) (uint64, error) { return c.reach, nil }
				c0.open()
				if err := c0.Wait(t.Context(), publish(t, c0.bus, "s.a", 10)); err != nil {
					t.Fatal(err)
				}
				c0.stop()
				last := publish(t, c0.bus, "s.a", 10)
				if err := stream.Remove(t.Context(), c0.bus.JS, "S", c.below); err != nil {
					t.Fatal(err)
				}
				purge(t, c0.bus, last) // all but the last
				c0.open()
				defer c0.stop()
				if c.gap {
					c0.gap(10)
					return
				}
				if err := c0.Wait(t.Context(), last); err != nil {
					t.Fatal(err)
				}
				if n, missed := c0.count("s.a"), c0.metric("view_missing_messages_total"); n != 11 || c0.Err() != nil || missed != c.missed {
					t.Errorf("%d messages, %v, %v missed, want %v", n, c0.Err(), missed, c.missed)
				}
			})
		}
	}
}

// What a removal has taken from within the stream is no loss to be counted.
func TestRemovedFromWithin(t *testing.T) {
	c := setup(t)
	c.removed = func(context.Context) (uint64, error) { return 7, nil }
	publish(t, c.bus, "s.a", 10)
	s, err := c.bus.JS.Stream(t.Context(), "S")
	if err != nil {
		t.Fatal(err)
	}
	for _, seq := range []uint64{3, 6, 7, 9} {
		if err := s.DeleteMsg(t.Context(), seq); err != nil {
			t.Fatal(err)
		}
	}
	c.open()
	defer c.stop()
	if err := c.Wait(t.Context(), 10); err != nil {
		t.Fatal(err)
	}
	if n := c.count("s.a"); n != 6 || c.metric("view_missing_messages_total") != 1 {
		t.Errorf("%d messages, %v missing", n, c.metric("view_missing_messages_total"))
	}
}

// Exclusive waits for what is being folded and holds up what comes.
func TestExclusive(t *testing.T) {
	c := setup(t)
	c.open()
	defer c.stop()
	if err := c.Wait(t.Context(), publish(t, c.bus, "s.a", 3)); err != nil {
		t.Fatal(err)
	}
	var last uint64
	err := c.Exclusive(func() error {
		last = publish(t, c.bus, "s.a", 3)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if err := c.Wait(ctx, 4); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("folded meanwhile: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(t.Context(), last); err != nil {
		t.Fatal(err)
	}
}

// A view is up to date when what waited for it is removed before it came: nothing
// else would tell it so.
func TestReadyWhenWhatWaitedIsRemoved(t *testing.T) {
	b := natstest.Start(t).Bus(t, "test")
	if _, err := b.JS.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}}); err != nil {
		t.Fatal(err)
	}
	const all = 4000 // more than are on their way at a time
	for range all {
		if _, err := b.JS.PublishAsync("s", nil); err != nil {
			t.Fatal(err)
		}
	}
	<-b.JS.PublishAsyncComplete()
	db, err := store.Open(store.Options{Dir: filepath.Join(t.TempDir(), "v")})
	if err != nil {
		t.Fatal(err)
	}
	begun, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	v, err := view.New(view.Config{Name: "v", Stream: "S", DB: db, JS: b.JS, Log: lifecycle.Discard(),
		Fold: func(*badger.Txn, []view.Msg) (func(), error) {
			once.Do(func() { close(begun) })
			<-goOn
			return nil, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	end := run(t, v, db)
	<-begun
	if err := stream.Remove(t.Context(), b.JS, "S", all+1); err != nil {
		t.Fatal(err)
	}
	close(goOn)
	limited, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	if err := v.WaitReady(limited); err != nil {
		t.Errorf("%v, at sequence %d of %d", err, v.Position(), all)
	}
	end()
}
