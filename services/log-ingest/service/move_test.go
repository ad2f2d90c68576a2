package ingest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/nats-io/nats.go"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/store"
	"github.com/nightjar-edr/nightjar/pkg/view"
)

// fleet is endpoints of many partitions with what they have sent.
type fleet struct {
	r    *rig
	want map[string][]string
}

// newFleet lets endpoints send batches; some of the events are alerts.
func newFleet(r *rig, endpoints, batches int) *fleet {
	r.t.Helper()
	f := &fleet{r: r, want: map[string][]string{}}
	for e := range endpoints {
		name := fmt.Sprintf("%08x%s", e, one[8:])
		for b := range batches {
			lines := []string{line(noon.Add(time.Duration(b)*time.Minute), 2*b), line(noon.Add(time.Duration(b)*time.Minute+1), 2*b+1)}
			r.send(name, noon, lines...)
			if b%5 == 0 {
				lines[1] = r.mark(name, lines[1], noon, 5)
			}
			f.want[name] = append(f.want[name], lines...)
		}
	}
	return f
}

// ask asks for all pages of an endpoint, a few lines each.
func (f *fleet) ask(ctx context.Context, endpoint string) ([]string, error) {
	var all []string
	for q := (message.LogsRequest{Endpoint: endpoint, Limit: 7}); ; {
		data, err := json.Marshal(q)
		if err != nil {
			return nil, err
		}
		m, err := f.r.bus.Request(ctx, subject.Logs(subject.PartitionOf(endpoint), message.LogsQuery), data)
		if err != nil {
			return nil, err
		}
		text, err := message.Decompress(nil, m.Data)
		if err != nil {
			return nil, err
		}
		for l := range strings.Lines(string(text)) {
			all = append(all, strings.TrimSuffix(l, "\n"))
		}
		if q.Cursor = m.Header.Get(message.HeaderNext); q.Cursor == "" {
			return all, nil
		}
	}
}

// watch asks for all endpoints all the time, until stop is called, and demands
// that each answer is complete or a refusal. answered waits until some more
// questions have been answered.
func (f *fleet) watch() (answered func(), stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	var answers, refusals atomic.Int64
	for range 2 {
		work.Go(func() {
			for ctx.Err() == nil {
				for endpoint, want := range f.want {
					got, err := f.ask(ctx, endpoint)
					switch {
					case ctx.Err() != nil:
						return
					case fault.Is(err, fault.Unavailable):
						refusals.Add(1)
					case err != nil:
						f.r.t.Errorf("asked for %s: %v", endpoint, err)
					case !slices.Equal(got, want):
						f.r.t.Errorf("%d lines of %s, partition %d, want %d", len(got), endpoint, subject.PartitionOf(endpoint), len(want))
					default:
						answers.Add(1)
					}
				}
			}
		})
	}
	answered = func() {
		f.r.t.Helper()
		from := answers.Load()
		f.r.eventually("questions are answered", func() bool { return answers.Load() > from+int64(len(f.want)) })
	}
	return answered, func() {
		cancel()
		work.Wait()
		f.r.t.Logf("%d answers, %d refusals", answers.Load(), refusals.Load())
	}
}

// replica returns another replica on the server of r, not started.
func (r *rig) replica() *rig {
	return &rig{t: r.t, srv: r.srv, bus: r.bus, own: r.own, dir: r.t.TempDir()}
}

// become starts the replica with a share of the partitions, or stops it and
// starts it with that.
func (r *rig) become(shards, ordinal int) {
	r.t.Helper()
	if r.stop != nil {
		if err := r.stop(); err != nil {
			r.t.Fatal(err)
		}
	}
	list, err := share(shards, ordinal, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	r.cfg.Partitions = list
	r.start()
}

// moved waits until the replica has nothing that it does not own.
func (r *rig) moved() {
	r.t.Helper()
	r.eventually("all partitions have moved", func() bool {
		n := r.svc.holding.states()
		return n[stateBuilding]+n[stateLeaving]+n[stateDropping] == 0
	})
}

// only demands that a store has entries of its own partitions alone.
func (r *rig) only() {
	r.t.Helper()
	own := r.svc.holding.own
	for _, endpoint := range r.endpoints() {
		if !own.owns(endpoint) {
			r.t.Errorf("entries of %s, partition %d, are left", endpoint, subject.PartitionOf(endpoint))
		}
	}
}

// endpoints returns the endpoints that a store has entries of.
func (r *rig) endpoints() (list []string) {
	r.t.Helper()
	err := r.svc.db.View(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			if key := it.Item().Key(); key[0] != 0 {
				list = append(list, string(key[3:3+int(key[2])]))
			}
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// While the number of shares goes from one to two, to three and back to one,
// replica by replica, each answer is complete or a refusal; in the end each
// replica has what it owns and nothing else.
func TestMove(t *testing.T) {
	t.Parallel()
	zero := newRig(t)
	f := newFleet(zero, 40, 12)
	first, second := zero.replica(), zero.replica()
	zero.become(1, 0)
	answered, stop := f.watch()
	defer stop()
	answered()
	moved := func(replicas ...*rig) {
		t.Helper()
		for _, r := range replicas {
			r.moved()
			r.only()
		}
		answered()
	}
	first.become(2, 1)
	zero.become(2, 0)
	moved(zero, first)
	// As Kubernetes does it: the new one, then from the highest number down.
	second.become(3, 2)
	first.become(3, 1)
	zero.become(3, 0)
	moved(zero, first, second)
	second.become(1, 2)
	first.become(1, 1)
	zero.become(1, 0)
	moved(zero, first, second)
	for _, r := range []*rig{second, first} {
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
	}
	answered()
	if got := len(zero.endpoints()); got != len(f.want) {
		t.Errorf("entries of %d endpoints in the end, want %d", got, len(f.want))
	}
	if got := zero.metric("partitions"); got != subject.Partitions {
		t.Errorf("partitions %v in the metric, want %d", got, subject.Partitions)
	}
}

// A question that two replicas could answer is answered by one, also where one
// of them has all partitions and the other some.
func TestOneAnswer(t *testing.T) {
	t.Parallel()
	all := newRig(t)
	f := newFleet(all, 10, 1)
	all.become(1, 0)
	half := all.replica()
	half.become(2, 1)
	const rounds = 20
	for range rounds {
		for e := range f.want {
			if _, err := f.ask(t.Context(), e); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := float64(rounds * len(f.want))
	all.eventually("as many answers as questions", func() bool {
		return all.metric("requests_total")+half.metric("requests_total") >= want
	})
	a, h := all.metric("requests_total"), half.metric("requests_total")
	if a+h != want || a == 0 || h == 0 {
		t.Errorf("%v and %v answers to %v questions", a, h, want)
	}
}

// A partition that is not owned any more is answered until another replica
// says that it holds it, and dropped then; all others stay.
func TestLeaving(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	f := newFleet(r, 40, 3)
	r.become(1, 0)
	r.become(2, 0)
	own := r.svc.holding.own
	var name string
	for e := range f.want {
		if !own.owns(e) {
			name = e
		}
	}
	p := subject.PartitionOf(name)
	foreign := own.complement()
	complete := func(but int) {
		t.Helper()
		for e, want := range f.want {
			var got []string
			var err error
			if subject.PartitionOf(e) == but {
				if got, err = f.ask(t.Context(), e); !fault.Is(err, fault.Unavailable) {
					t.Errorf("a dropped partition is answered: %d lines, %v", len(got), err)
				}
				continue
			}
			// What reaches an announcement that ends is refused, and gateways ask again.
			r.eventually("the question is not refused", func() bool {
				got, err = f.ask(t.Context(), e)
				return !fault.Is(err, fault.Unavailable)
			})
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("%d lines of partition %d, %v, want %d", len(got), subject.PartitionOf(e), err, len(want))
			}
		}
	}
	complete(-1)
	say := func(text string) {
		t.Helper()
		if err := r.bus.NC.Publish(message.LogsHeld, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	held := func(replica string, partitions ...int) string {
		text, err := json.Marshal(message.Held{Replica: replica, Partitions: partitions})
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	// None of these frees it from any, nor does its own word of before.
	say("junk")
	say(held("", foreign.list()...))
	say(held(r.svc.holding.layout.Replica, foreign.list()...))
	say(held("other", append(own.list(), -1, subject.Partitions)...))
	say(held("other", p))
	r.eventually("one partition is dropped", func() bool {
		n := r.svc.holding.states()
		return n[stateLeaving] == len(foreign.list())-1 && n[stateDropping] == 0
	})
	complete(p)
	for _, e := range r.endpoints() {
		if subject.PartitionOf(e) == p {
			t.Errorf("entries of %s are left", e)
		}
	}
	if err := r.svc.Ready(); err != nil {
		t.Errorf("not ready: %v", err)
	}
	// What comes for the others meanwhile is folded, and nothing of the one.
	for e := range f.want {
		l := line(noon.Add(24*time.Hour), 1)
		r.send(e, noon, l)
		f.want[e] = append(f.want[e], l)
	}
	r.settle()
	complete(p)
	// It comes back: it is built again, and the rest is not.
	r.become(1, 0)
	complete(-1)
	n := 0
	for e, want := range f.want {
		if subject.PartitionOf(e) == p {
			n += len(want)
		}
	}
	if got := r.metric("events_stored_total"); got != float64(n) {
		t.Errorf("%v events stored for the partition that came back, want %d", got, n)
	}
}

// tamper changes the layout of a store that is not open.
func (r *rig) tamper(change func(l *layout)) {
	r.t.Helper()
	db, err := store.Open(store.Options{Dir: filepath.Join(r.dir, "store"), Large: true})
	if err != nil {
		r.t.Fatal(err)
	}
	l, err := readLayout(db)
	if err == nil {
		change(l)
		err = l.write(db, &layout{})
	}
	if err := errors.Join(err, db.Close()); err != nil {
		r.t.Fatal(err)
	}
}

// Partitions of which a crash has left some entries are dropped first, and
// built again then where they are owned.
func TestDroppingGoesOn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	f := newFleet(r, 20, 6)
	r.become(1, 0)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r.tamper(func(l *layout) {
		half := setOf(l.Pieces[0].Partitions[:16])
		l.release(0, &half)
	})
	answered, stop := f.watch()
	r.start()
	r.moved()
	answered()
	stop()
	for e, want := range f.want {
		if got, err := f.ask(t.Context(), e); err != nil || !slices.Equal(got, want) {
			t.Errorf("%d lines of partition %d, %v, want %d", len(got), subject.PartitionOf(e), err, len(want))
		}
	}
	if l := r.svc.holding.layout; len(l.Pieces) != 2 || len(l.Dropping) != 0 {
		t.Errorf("the layout is %+v", l)
	}
}

// A build that was away while the head of its stream left begins anew, as what
// left has ended for everybody; what was complete once stands still.
func TestBuildBeginsAnew(t *testing.T) {
	for name, built := range map[string]bool{"building": false, "built": true} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.send(one, noon, line(noon, 1))
			r.become(2, subject.PartitionOf(one))
			if err := r.stop(); err != nil {
				t.Fatal(err)
			}
			r.tamper(func(l *layout) { l.Pieces[0].Built = built })
			r.send(one, noon, line(noon, 2))
			r.send(one, noon, line(noon, 3))
			s, err := r.bus.JS.Stream(t.Context(), stream.Events)
			if err != nil {
				t.Fatal(err)
			}
			for seq := range uint64(2) {
				if err := s.DeleteMsg(t.Context(), seq+1); err != nil {
					t.Fatal(err)
				}
			}
			if built {
				r.launch()
				r.eventually("the gap is told", func() bool { return errors.Is(r.svc.Ready(), view.ErrGap) })
				return
			}
			r.start()
			equal(t, "built again", r.ask(message.LogsRequest{Endpoint: one}), []string{line(noon, 3)})
		})
	}
}

// A store of the first version opens as it is, and moves.
func TestStoreOfTheFirstVersion(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	f := newFleet(r, 20, 2)
	r.become(2, 1)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(store.Options{Dir: filepath.Join(r.dir, "store"), Large: true})
	if err != nil {
		t.Fatal(err)
	}
	list, err := json.Marshal(r.cfg.Partitions)
	if err == nil {
		err = db.Update(func(txn *badger.Txn) error { return txn.Set(layoutKey, list) })
	}
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	r.become(1, 0)
	had := setOf([]int{})
	for p := range had {
		had[p] = p%2 == 1
	}
	n := 0
	for e, want := range f.want {
		equal(t, e, r.ask(message.LogsRequest{Endpoint: e}), want)
		if !had.owns(e) {
			n += len(want)
		}
	}
	if got := r.metric("events_stored_total"); got != float64(n) || n == 0 {
		t.Errorf("%v events stored, want %d: what was there is not folded again", got, n)
	}
}

// What another replica has said counts for a while, and only what it said.
func TestHolders(t *testing.T) {
	h := newHolders(nil, lifecycle.Discard(), "me", false)
	for _, text := range []string{`{"replica":"a","partitions":[1,31]}`, `{"replica":"b","partitions":[1,-1,99]}`, `{"replica":"me","partitions":[2]}`, `{"partitions":[3]}`, `{`} {
		h.hear(&nats.Msg{Data: []byte(text)})
	}
	if got := h.others(); !slices.Equal(got.list(), []int{1, 31}) {
		t.Errorf("held by others: %v", got.list())
	}
	h.heard[31] = time.Now().Add(-heardFor)
	if got := h.others(); !slices.Equal(got.list(), []int{1}) {
		t.Errorf("held by others, later: %v", got.list())
	}
}

// A replica that is alone answers, and tells nobody what it holds.
func TestReplicaThatIsAlone(t *testing.T) {
	r := newRig(t)
	r.ensure()
	said := make(chan *nats.Msg, 1)
	sub, err := r.bus.NC.ChanSubscribe(message.LogsHeld, said)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	r.cfg.Alone = true
	r.start()
	r.send(one, noon, line(noon, 1))
	r.settle()
	if got := r.ask(message.LogsRequest{Endpoint: one}); len(got) != 1 {
		t.Errorf("%d lines", len(got))
	}
	for _, b := range []*bus.Bus{r.cfg.Bus, r.bus} {
		if err := b.NC.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if len(said) > 0 {
		t.Errorf("it said %s", (<-said).Data)
	}
}
