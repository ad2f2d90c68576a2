package intake

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
)

// rig is an Intake with the rights of a gateway on a real NATS server.
type rig struct {
	t   *testing.T
	own *bus.Bus
	all *bus.Bus
	cfg Config
	*Intake
	stop func()

	mu  sync.Mutex
	log bytes.Buffer
	// refuse, if not nil, is why EVENTS takes nothing.
	refuse     atomic.Pointer[error]
	generation atomic.Uint64
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t}
	r.own, r.all = natstest.Restricted(t, access.Gateway)
	for _, name := range []string{stream.Intake, stream.Events} {
		if err := stream.Ensure(t.Context(), r.own.JS, name, stream.Limits{}); err != nil {
			t.Fatal(err)
		}
	}
	events, err := bus.NewPublisher(r.own, 10*time.Second, 0)
	if err != nil {
		t.Fatal(err)
	}
	r.cfg = Config{
		JS: r.own.JS, Gateway: "one", Alone: true,
		Publish: func(m *nats.Msg, settled func(*jetstream.PubAck, error)) error {
			if why := r.refuse.Load(); why != nil {
				settled(nil, *why)
				return nil
			}
			return events.Publish(m, settled)
		},
		Generation: func(string) uint64 { return r.generation.Load() },
		Log:        slog.New(slog.NewTextHandler(r, nil)),
	}
	return r
}

// Write implements io.Writer for the log.
func (r *rig) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(p)
}

func (r *rig) logged(text string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Contains(r.log.String(), text)
}

// begin makes the Intake, and run has it move things.
func (r *rig) begin() {
	r.cfg.Metrics = prometheus.NewRegistry()
	r.Intake = New(r.cfg)
}

func (r *rig) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); r.Run(ctx) }()
	r.stop = sync.OnceFunc(func() { cancel(); <-done })
	r.t.Cleanup(r.stop)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("in vain waited until %s", what)
		}
	}
}

var start = time.UnixMicro(1714979289123456).UTC()

func uuid(endpoint int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", endpoint) }

// line is what endpoint sends as its nth line; it says when it was received. Every
// seventh endpoint sends long ones.
func line(endpoint, n int) string {
	pad := ""
	if endpoint%7 == 0 {
		pad = strings.Repeat("a long event ", 500+n)
	}
	return fmt.Sprintf(`{"endpoint":%d,"n":%d,"pad":"%s"}`, endpoint, n, pad)
}

// timeOf is the time of that event.
func timeOf(n int) time.Time { return start.Add(time.Duration(n) * time.Millisecond) }

func batch(endpoint, n, count int) message.Joined {
	j := message.Joined{
		Batch: message.Batch{Endpoint: uuid(endpoint), Hostname: "WS-01", IP: "192.0.2.7", Received: start.Add(time.Duration(n) * time.Microsecond)},
		Count: count,
	}
	for i := range count {
		j.Text = append(append(j.Text, line(endpoint, n+i)...), '\n')
		j.Times = append(j.Times, timeOf(n+i))
	}
	return j
}

// publish publishes a batch in memory that changes afterwards, and returns what
// became of it.
func (r *rig) publish(b message.Joined) error {
	p := r.Prepare(b)
	for i := range b.Text {
		b.Text[i] = 0
	}
	clear(b.Times)
	outcome := make(chan error, 1)
	if err := r.Publish(p, func(err error) { outcome <- err }); err != nil {
		return err
	}
	return <-outcome
}

// hand publishes batches from many senders at once, each of which sends the next
// one when the one before is acknowledged, and returns the errors.
func (r *rig) hand(senders, each int) []error {
	var on sync.WaitGroup
	errs := make([]error, senders*each)
	for s := range senders {
		on.Go(func() {
			for n := range each {
				errs[s*each+n] = r.publish(batch(s, 10*n, 1+n%3))
			}
		})
	}
	on.Wait()
	return errs
}

func (r *rig) messages(name string) uint64 {
	r.t.Helper()
	s, err := r.all.JS.Stream(r.t.Context(), name)
	if err != nil {
		r.t.Fatal(err)
	}
	return s.CachedInfo().State.Msgs
}

// events reads EVENTS: how often each line stands there, and checks that each
// has the head that it was sent with.
func (r *rig) events() (lines map[string]int, messages int) {
	r.t.Helper()
	s, err := r.all.JS.Stream(r.t.Context(), stream.Events)
	if err != nil {
		r.t.Fatal(err)
	}
	lines = map[string]int{}
	for seq := max(1, s.CachedInfo().State.FirstSeq); seq <= s.CachedInfo().State.LastSeq; seq++ {
		m, err := s.GetMsg(r.t.Context(), seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		} else if err != nil {
			r.t.Fatal(err)
		}
		messages++
		b, _, err := message.ParseBatch(m.Subject, m.Header, m.Data, nil)
		if err != nil {
			r.t.Fatal(err)
		}
		size := 0
		for _, text := range b.Lines {
			size += len(text) + 1
		}
		for i, text := range b.Lines {
			var endpoint, n int
			if _, err := fmt.Sscanf(string(text), `{"endpoint":%d,"n":%d,`, &endpoint, &n); err != nil || string(text) != line(endpoint, n) {
				r.t.Fatalf("%.60s: %v", text, err)
			}
			if size <= 8<<10 {
				if len(b.Times) != 0 {
					r.t.Error("a small message has times")
				}
			} else if len(b.Times) != len(b.Lines) || !b.Times[i].Equal(timeOf(n)) {
				r.t.Errorf("%.60s: times %s", text, b.Times)
			}
			received := start.Add(time.Duration(n/10*10) * time.Microsecond)
			if b.Endpoint != uuid(endpoint) || m.Subject != subject.Events(b.Endpoint) || b.Hostname != "WS-01" || b.IP != "192.0.2.7" || !b.ReceivedAt(i).Equal(received) {
				r.t.Errorf("%.60s: on %s from %s, %s, received at %s, want %s", text, m.Subject, b.Hostname, b.IP, b.ReceivedAt(i), received)
			}
			lines[string(text)]++
		}
	}
	return lines, messages
}

// demand wants every line that hand has sent, exactly or at least once.
func demand(t *testing.T, lines map[string]int, senders, each int, once bool) {
	t.Helper()
	want := 0
	for s := range senders {
		for n := range each {
			for i := range 1 + n%3 {
				want++
				if got := lines[line(s, 10*n+i)]; got == 0 || once && got > 1 {
					t.Errorf("%.60s stands in EVENTS %d times", line(s, 10*n+i), got)
				}
			}
		}
	}
	if len(lines) != want {
		t.Errorf("%d lines, want %d", len(lines), want)
	}
}

// What many send at once comes to stand in EVENTS, once and by endpoint, in a
// part of the messages, and INTAKE is empty then, and takes no room.
func TestTogether(t *testing.T) {
	r := newRig(t)
	r.begin()
	r.run()
	eventually(t, "what was left is looked for", func() bool { return r.Ready() == nil })
	const senders, each = 40, 50
	if err := errors.Join(r.hand(senders, each)...); err != nil {
		t.Fatal(err)
	}
	eventually(t, "INTAKE is empty", func() bool { return r.messages(stream.Intake) == 0 })
	lines, messages := r.events()
	demand(t, lines, senders, each, true)
	if messages > senders*each/3 {
		t.Errorf("%d batches became %d messages", senders*each, messages)
	}
	eventually(t, "its files are given back", func() bool {
		r.Intake.mu.Lock()
		defer r.Intake.mu.Unlock()
		return len(r.stored) == 0 && !r.dirty
	})
	// The next batch finds the stream as it should be.
	if err := errors.Join(r.hand(senders, each+1)...); err != nil {
		t.Fatal(err)
	}
	eventually(t, "INTAKE is empty again", func() bool { return r.messages(stream.Intake) == 0 })
	lines, _ = r.events()
	demand(t, lines, senders, each+1, false)
}

// A single batch goes to EVENTS without a detour.
func TestSingleGoesStraight(t *testing.T) {
	r := newRig(t)
	r.begin() // nothing is moved
	if err := errors.Join(r.hand(1, 20)...); err != nil {
		t.Fatal(err)
	}
	lines, _ := r.events()
	demand(t, lines, 1, 20, true)
	if n := r.messages(stream.Intake); n != 0 {
		t.Errorf("%d messages in INTAKE", n)
	}
}

// fill acknowledges batches and moves none of them.
func (r *rig) fill(senders, each int) {
	r.t.Helper()
	r.begin()
	for n := range each {
		batches := make([]message.Joined, senders)
		for s := range batches {
			batches[s] = batch(s, 10*n, 1+n%3).Keep()
		}
		if _, err := r.own.JS.PublishMsg(r.t.Context(), message.IntakeMsg(r.cfg.Gateway, batches)); err != nil {
			r.t.Fatal(err)
		}
	}
}

// What a process has acknowledged and not moved is moved by the next one, before
// that is ready.
func TestLeftBehind(t *testing.T) {
	for _, alone := range []bool{true, false} {
		t.Run(fmt.Sprintf("alone %v", alone), func(t *testing.T) {
			r := newRig(t)
			const senders, each = 30, 40
			r.fill(senders, each)
			r.cfg.Gateway, r.cfg.Alone = "two", alone
			r.begin()
			if r.Ready() == nil {
				t.Error("ready before what was left is moved")
			}
			r.run()
			eventually(t, "what was left is moved", func() bool { return r.Ready() == nil })
			lines, messages := r.events()
			demand(t, lines, senders, each, true)
			if messages > 2*senders {
				t.Errorf("%d batches became %d messages", senders*each, messages)
			}
			if n := r.messages(stream.Intake); n != 0 {
				t.Errorf("%d messages in INTAKE", n)
			}
		})
	}
}

// Of two that run, one moves what a third one left, though it was there already
// when they looked the first time.
func TestLeftByAnother(t *testing.T) {
	r := newRig(t)
	r.cfg.Gateway, r.cfg.Alone = "two", false
	r.begin()
	r.run()
	eventually(t, "it is ready", func() bool { return r.Ready() == nil })
	r.stop()
	two := r.Intake
	r.cfg.Gateway = "one"
	const senders, each = 5, 4
	r.fill(senders, each)
	r.Intake = two
	seen, err := r.look(t.Context(), 0)
	if err != nil || seen != each {
		t.Fatalf("saw %d, %v", seen, err)
	}
	if n := r.messages(stream.Intake); n != each {
		t.Errorf("%d messages in INTAKE: what another one may have in hand was moved at once", n)
	}
	if _, err := r.look(t.Context(), seen); err != nil {
		t.Fatal(err)
	}
	lines, _ := r.events()
	demand(t, lines, senders, each, true)
	if n := r.messages(stream.Intake); n != 0 {
		t.Errorf("%d messages in INTAKE", n)
	}
}

// While EVENTS takes nothing, what is acknowledged stays, nothing more is taken
// in, and all of it is moved when there is room.
func TestEventsRefuse(t *testing.T) {
	r := newRig(t)
	r.begin() // nothing is moved before run
	const senders, each = 40, 50
	errs := r.hand(senders, each)
	full := errors.New("maximum bytes exceeded")
	r.refuse.Store(&full)
	r.run()
	eventually(t, "it is ready", func() bool { return r.Ready() == nil })
	eventually(t, "the next are refused", func() bool {
		return errors.Is(r.publish(batch(99, 0, 1)), full) && r.logged("trying again")
	})
	stands := r.messages(stream.Intake)
	if stands == 0 {
		t.Error("nothing is in INTAKE")
	}
	r.refuse.Store(nil)
	eventually(t, "INTAKE is empty", func() bool { return r.messages(stream.Intake) == 0 })
	lines, _ := r.events()
	for s := range senders {
		for n := range each {
			for i := range 1 + n%3 {
				got := lines[line(s, 10*n+i)]
				if err := errs[s*each+n]; err == nil && got != 1 || got > 1 {
					t.Errorf("%.60s stands in EVENTS %d times, answered with %v", line(s, 10*n+i), got, err)
				}
			}
		}
	}
}

// Who starts while EVENTS takes nothing is ready, and moves what was left when
// there is room.
func TestStartWhileEventsRefuse(t *testing.T) {
	r := newRig(t)
	const senders, each = 3, 4
	r.fill(senders, each)
	full := errors.New("maximum bytes exceeded")
	r.refuse.Store(&full)
	r.cfg.Gateway = "two"
	r.begin()
	r.run()
	eventually(t, "it is ready", func() bool { return r.Ready() == nil })
	r.refuse.Store(nil)
	eventually(t, "INTAKE is empty", func() bool { return r.messages(stream.Intake) == 0 })
	lines, _ := r.events()
	demand(t, lines, senders, each, true)
}

// A stop moves what is in hand.
func TestStopMovesWhatIsInHand(t *testing.T) {
	r := newRig(t)
	r.begin()
	r.run()
	eventually(t, "it is ready", func() bool { return r.Ready() == nil })
	const senders, each = 40, 2
	if err := errors.Join(r.hand(senders, each)...); err != nil {
		t.Fatal(err)
	}
	r.stop()
	lines, _ := r.events()
	demand(t, lines, senders, each, true)
	if n := r.messages(stream.Intake); n != 0 {
		t.Errorf("%d messages in INTAKE", n)
	}
}

// When INTAKE takes nothing, everything goes to EVENTS and nobody notices.
func TestIntakeRefuses(t *testing.T) {
	r := newRig(t)
	r.begin()
	r.run()
	eventually(t, "it is ready", func() bool { return r.Ready() == nil })
	if err := r.all.JS.DeleteStream(t.Context(), stream.Intake); err != nil {
		t.Fatal(err)
	}
	const senders, each = 40, 20
	if err := errors.Join(r.hand(senders, each)...); err != nil {
		t.Fatal(err)
	}
	lines, _ := r.events()
	demand(t, lines, senders, each, true)
	if !r.logged("cannot be taken in together") {
		t.Error("nothing is said of it")
	}
}

// What is removed meanwhile is not moved.
func TestRemovedMeanwhile(t *testing.T) {
	r := newRig(t)
	const senders, each = 3, 4
	r.fill(senders, each)
	r.generation.Store(1714979289123)
	r.begin()
	r.run()
	eventually(t, "what was left is looked for", func() bool { return r.Ready() == nil })
	if lines, _ := r.events(); len(lines) != 0 {
		t.Errorf("%d removed lines were moved to EVENTS", len(lines))
	}
	if n := r.messages(stream.Intake); n != 0 {
		t.Errorf("%d messages in INTAKE", n)
	}
}

// Clear waits for what is in INTAKE, and for nothing that comes later.
func TestClear(t *testing.T) {
	r := newRig(t)
	r.begin()
	if err := r.Clear(t.Context()); err != nil {
		t.Errorf("of an empty stream: %v", err)
	}
	const senders, each = 3, 4
	r.fill(senders, each)
	brief, cancel := context.WithTimeout(t.Context(), 4*moveAfter)
	defer cancel()
	if err := r.Clear(brief); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("of a stream that nobody moves: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- r.Clear(t.Context()) }()
	r.run()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := r.messages(stream.Intake); n != 0 {
		t.Errorf("%d messages in INTAKE", n)
	}
}

// A message that cannot be read is told of, stays, and is in nobody's way.
func TestUnreadable(t *testing.T) {
	r := newRig(t)
	m := nats.NewMsg(subject.Intake("later"))
	m.Header.Set(message.HeaderFormat, "2")
	if _, err := r.own.JS.PublishMsg(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	const senders, each = 3, 4
	r.fill(senders, each)
	r.cfg.Gateway = "two"
	r.begin()
	r.run()
	eventually(t, "it is ready", func() bool { return r.Ready() == nil })
	lines, _ := r.events()
	demand(t, lines, senders, each, true)
	if n := r.messages(stream.Intake); n != 1 || !r.logged("cannot be read") {
		t.Errorf("%d messages in INTAKE, log:\n%s", n, r.log.String())
	}
}

// Messages of EVENTS keep to their bounds, whatever is joined.
func TestBounds(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	kept := make([]message.Joined, 300)
	for i := range kept {
		kept[i] = message.Joined{Text: make([]byte, rnd.IntN(maxBatch)>>rnd.IntN(8)), Count: 1 + rnd.IntN(maxLines)>>rnd.IntN(8)}.Keep()
	}
	for range 200 {
		pieces := make([]piece, 1+rnd.IntN(300))
		for i := range pieces {
			pieces[i].batch = kept[rnd.IntN(len(kept))]
		}
		for rest := pieces; len(rest) > 0; {
			n := together(rest)
			lines, size := 0, 0
			for _, p := range rest[:n] {
				lines, size = lines+p.batch.Count, size+p.batch.Size()
			}
			if n == 0 || lines > message.MaxBatchEvents || size > maxJoined {
				t.Fatalf("%d batches with %d lines, %d bytes", n, lines, size)
			}
			rest = rest[n:]
		}
	}
}
