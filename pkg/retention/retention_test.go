package retention

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
)

const events = "edr.events.9.03e31275-2277-d8e0-bb5f-480fac7ee4ef"

// rig is a stream of events with a keeper.
type rig struct {
	t   *testing.T
	bus *bus.Bus
	*machine
	cfg Config
}

func newRig(t *testing.T, limits stream.Limits) *rig {
	t.Helper()
	b := natstest.Start(t).Bus(t, access.Gateway)
	r := &rig{t: t, bus: b, machine: newMachine(t)}
	r.wall = time.Now().UTC() // as the server's clock
	if err := stream.Ensure(t.Context(), b.JS, stream.Events, limits); err != nil {
		t.Fatal(err)
	}
	r.cfg = Config{JS: b.JS, Stream: stream.Events, Limits: limits, Clock: r.clock(), Log: lifecycle.Discard()}
	return r
}

// keeper returns the keeper of a process that starts now.
func (r *rig) keeper() *Keeper {
	r.cfg.Metrics = NewMetrics(prometheus.NewRegistry(), "test")
	return New(r.cfg)
}

// publish stores n messages of a size.
func (r *rig) publish(n, size int) {
	r.t.Helper()
	for range n {
		m := &nats.Msg{Subject: events, Header: nats.Header{"Nightjar-Count": {"7"}}, Data: make([]byte, size)}
		if _, err := r.bus.JS.PublishMsg(r.t.Context(), m); err != nil {
			r.t.Fatal(err)
		}
	}
}

// look lets a keeper look until there is nothing more.
func (r *rig) look(k *Keeper) {
	r.t.Helper()
	for more := true; more; {
		var err error
		if more, err = k.look(r.t.Context()); err != nil {
			r.t.Fatal(err)
		}
	}
}

func (r *rig) info() *jetstream.StreamInfo {
	r.t.Helper()
	s, err := r.bus.JS.Stream(r.t.Context(), stream.Events)
	if err != nil {
		r.t.Fatal(err)
	}
	return s.CachedInfo()
}

// first demands that the stream begins with a sequence, and says why.
func (r *rig) first(want uint64) {
	r.t.Helper()
	info := r.info()
	if mark := stream.RemovedBelow(info.Config); info.State.FirstSeq != want || want > 1 && mark != want || want == 1 && mark != 0 {
		r.t.Errorf("the stream begins at %d with mark %d, want %d", info.State.FirstSeq, mark, want)
	}
}

// TestSize holds that a stream that has grown beyond its size loses its oldest
// messages, as many as it must, and is left alone until it has grown again.
func TestSize(t *testing.T) {
	const size = 10_000
	r := newRig(t, stream.Limits{})
	r.publish(1, size)
	one := int64(r.info().State.Bytes)
	r.cfg.Limits.KeepBytes = 40 * one
	k := r.keeper()
	r.publish(39, size)
	r.look(k)
	r.first(1) // at its size, not beyond
	r.publish(1, size)
	r.look(k)
	r.first(4) // to a twentieth below: 38 of 41 stay
	if n, b := testutil.ToFloat64(r.cfg.Metrics.messages.WithLabelValues(stream.Events, "size")), testutil.ToFloat64(r.cfg.Metrics.bytes.WithLabelValues(stream.Events, "size")); n != 3 || b != float64(3*one) {
		t.Errorf("%v messages and %v bytes counted, want 3 and %d", n, b, 3*one)
	}
	r.publish(2, size)
	r.look(k)
	r.first(4)
	// The oldest are larger than the average: no more of them go than must.
	r.publish(60, size/10)
	r.look(k)
	if b := int64(r.info().State.Bytes); b > 40*one || b < 37*one {
		t.Errorf("%d bytes are left of %d", b, 40*one)
	}
}

// TestFloor holds that nothing is removed that has not been looked at, by size
// or by age, and that it is said.
func TestFloor(t *testing.T) {
	for name, limits := range map[string]stream.Limits{"size": {KeepBytes: 5000}, "age": {MaxAge: 30 * day}} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, limits)
			r.cfg.Floor = AckFloor(r.bus.JS, stream.Events, "reader")
			k := r.keeper()
			r.publish(20, 1000)
			r.look(k) // from here on the clock is known
			r.pass(40 * day)
			look := func(first uint64, held float64) {
				t.Helper()
				r.look(k)
				r.first(first)
				if h := testutil.ToFloat64(r.cfg.Metrics.held.WithLabelValues(stream.Events)); h != held {
					t.Errorf("held %v, want %v", h, held)
				}
			}
			look(1, 1)
			c, err := r.bus.JS.CreateConsumer(t.Context(), stream.Events, jetstream.ConsumerConfig{Durable: "reader", AckPolicy: jetstream.AckExplicitPolicy})
			if err != nil {
				t.Fatal(err)
			}
			look(1, 1)
			var msgs []jetstream.Msg
			batch, err := c.Fetch(20)
			if err != nil {
				t.Fatal(err)
			}
			for m := range batch.Messages() {
				msgs = append(msgs, m)
			}
			// The fifth is not acknowledged; what follows must not go.
			for i, m := range msgs {
				if i != 4 {
					if err := m.DoubleAck(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
			}
			look(5, 1)
			if err := msgs[4].DoubleAck(t.Context()); err != nil {
				t.Fatal(err)
			}
			r.look(k)
			if info := r.info(); info.State.FirstSeq <= 5 || testutil.ToFloat64(r.cfg.Metrics.held.WithLabelValues(stream.Events)) != 0 {
				t.Errorf("the stream begins at %d", info.State.FirstSeq)
			}
		})
	}
}

// TestFloorBehindRemoved holds that messages that a removal takes before they are
// acknowledged hold nothing, those in hand and those that nobody has got.
func TestFloorBehindRemoved(t *testing.T) {
	r := newRig(t, stream.Limits{KeepBytes: 3000})
	r.cfg.Floor = AckFloor(r.bus.JS, stream.Events, "reader")
	k := r.keeper()
	r.publish(20, 1000)
	c, err := r.bus.JS.CreateConsumer(t.Context(), stream.Events, jetstream.ConsumerConfig{
		Durable: "reader", AckPolicy: jetstream.AckExplicitPolicy, AckWait: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	batch, err := c.Fetch(10)
	if err != nil {
		t.Fatal(err)
	}
	for m := range batch.Messages() {
		if meta, err := m.Metadata(); err != nil || meta.Sequence.Stream == 5 || meta.Sequence.Stream == 6 {
			continue
		}
		if err := m.DoubleAck(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	r.look(k)
	r.first(5)
	s, err := r.bus.JS.Stream(t.Context(), stream.Events)
	if err != nil {
		t.Fatal(err)
	}
	for _, seq := range []uint64{5, 6, 11, 12} {
		if err := s.DeleteMsg(t.Context(), seq); err != nil {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(20 * time.Second); r.info().State.FirstSeq <= 18; r.look(k) {
		if time.Now().After(end) {
			t.Fatalf("the stream begins at %d, its keeper is held at %+v", r.info().State.FirstSeq, c.CachedInfo())
		}
		batch, err := c.FetchNoWait(10)
		if err != nil {
			t.Fatal(err)
		}
		for m := range batch.Messages() {
			if err := m.DoubleAck(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestAge holds that messages are kept for their time and not much longer, and
// that a clock that has jumped ahead removes nothing.
func TestAge(t *testing.T) {
	r := newRig(t, stream.Limits{MaxAge: 30 * day})
	k := r.keeper()
	r.publish(10, 100)
	look := func(first uint64) {
		t.Helper()
		r.look(k)
		r.first(first)
	}
	look(1)
	r.pass(30*day - time.Minute)
	look(1)
	r.jump(365 * day)
	look(1)
	r.jump(-365 * day)
	look(1)
	r.jump(365 * day) // between two runs
	r.cfg.Clock = r.clock()
	k = r.keeper()
	look(1)
	r.jump(-365*day - day)
	look(1)
	r.jump(day)
	look(1)
	r.pass(day + 2*time.Hour)
	look(11)
	if n := testutil.ToFloat64(r.cfg.Metrics.messages.WithLabelValues(stream.Events, "age")); n != 10 {
		t.Errorf("%v messages counted, want 10", n)
	}
}

// TestBrokenOff holds that a removal that was announced and did not come about
// is finished, that the mark stays when the stream is brought to its definition
// again, and that one that got lost is written anew.
func TestBrokenOff(t *testing.T) {
	r := newRig(t, stream.Limits{KeepBytes: 1 << 30})
	r.publish(10, 100)
	mark := func(value string) {
		t.Helper()
		cfg := r.info().Config
		cfg.Metadata = map[string]string{"nightjar-removed-below": value}
		if _, err := r.bus.JS.UpdateStream(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	mark("6")
	if err := stream.Ensure(t.Context(), r.bus.JS, stream.Events, r.cfg.Limits); err != nil {
		t.Fatal(err)
	}
	k := r.keeper()
	r.look(k)
	r.first(6)
	mark("3") // by a replica that looked before
	r.look(k)
	r.first(6)
}

// TestRemoving holds that its owner is told what is about to go, and of nothing
// that somebody else has removed.
func TestRemoving(t *testing.T) {
	r := newRig(t, stream.Limits{KeepBytes: 1})
	var told []uint64
	r.cfg.Removing = func(_ context.Context, seqs []uint64) {
		told = append(append(told, seqs...), r.info().State.FirstSeq)
	}
	r.publish(4, 100)
	s, err := r.bus.JS.Stream(t.Context(), stream.Events)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteMsg(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	k := r.keeper()
	r.look(k)
	r.publish(2, 100)
	r.look(k)
	if want := []uint64{1, 3, 4, 1, 5, 6, 5}; !slices.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
}

// TestFollow holds that everybody is told of each removal, again where that
// failed, and of none there was not.
func TestFollow(t *testing.T) {
	r := newRig(t, stream.Limits{KeepBytes: 1})
	r.publish(3, 100)
	k := r.keeper()
	r.look(k)
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	var told []uint64
	follow(ctx, r.bus.JS, stream.Events, lifecycle.Discard(), 10*time.Millisecond, func(_ context.Context, below uint64) error {
		told = append(told, below)
		switch len(told) {
		case 1:
			return context.DeadlineExceeded
		case 2:
			r.publish(1, 100)
			r.look(k)
		default:
			stop()
		}
		return nil
	})
	if want := []uint64{4, 4, 5}; !slices.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
}
