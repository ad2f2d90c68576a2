package scorer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
)

const (
	alpha = "aaaaaaaa-0000-0000-0000-000000000001"
	beta  = "BBBBBBBB-0000-0000-0000-000000000002"
	gamma = "cccccccc-0000-0000-0000-000000000003"
)

var t0 = time.Date(2024, 5, 6, 7, 8, 9, 123456700, time.FixedZone("", 2*3600))

// world is a NATS server with the stream ALERTS, one who raises alerts and
// one who asks for reports.
type world struct {
	t   *testing.T
	srv *natstest.Server
	bus *bus.Bus
	n   int
}

func newWorld(t *testing.T) *world {
	t.Helper()
	srv := natstest.Start(t)
	w := &world{t: t, srv: srv, bus: srv.Bus(t, access.Gateway)}
	natstest.Removed(t, w.bus)
	if err := stream.Ensure(t.Context(), w.bus.JS, stream.Alerts, stream.Limits{}); err != nil {
		t.Fatal(err)
	}
	return w
}

// start runs a service on a folder until it is stopped or the test ends, and
// waits until it is ready.
func (w *world) start(dir string) (s *Service, stop func()) {
	w.t.Helper()
	return w.startOn(w.srv.Bus(w.t, access.Scorer), dir)
}

func (w *world) startOn(b *bus.Bus, dir string) (s *Service, stop func()) {
	w.t.Helper()
	s, err := New(Config{Env: lifecycle.Env{
		Bus: b, Log: lifecycle.Discard(), Metrics: prometheus.NewRegistry(), DataDir: dir, Replicas: 1,
	}})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				w.t.Errorf("Run: %v", err)
			}
		case <-time.After(20 * time.Second):
			w.t.Error("Run does not end")
		}
	})
	w.t.Cleanup(stop)
	w.eventually("ready", func() bool { return s.Ready() == nil })
	return s, stop
}

func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("not %s in time", what)
		}
	}
}

// raise publishes an alert of these names and returns its sequence. known are
// the criticalities of the rules that the manager knows.
func (w *world) raise(endpoint string, known map[string]int, names ...string) uint64 {
	w.t.Helper()
	w.n++
	return w.raiseAt(endpoint, t0.Add(time.Duration(w.n)*time.Second), known, names...)
}

func (w *world) raiseAt(endpoint string, at time.Time, known map[string]int, names ...string) uint64 {
	w.t.Helper()
	w.n++
	line := fmt.Appendf(nil, `{"Event":{"n":%d}}`, w.n)
	a := message.Alert{Endpoint: endpoint, Received: t0, Time: at, Timed: true, Hash: event.HashOf(line), Line: line,
		Signatures: names, Criticality: 10, Origin: message.OriginAgent}
	for _, n := range names {
		if c, ok := known[n]; ok {
			a.Rules = append(a.Rules, message.RuleInfo{Name: n, Criticality: c, ATTACK: []event.Attack{{ID: "T-" + n, Tactic: "tactic-" + n}}})
		}
	}
	return w.publish(a)
}

// publish stores an alert and returns its sequence.
func (w *world) publish(a message.Alert) uint64 {
	w.t.Helper()
	m, err := a.Msg()
	if err != nil {
		w.t.Fatal(err)
	}
	ack, err := w.bus.JS.PublishMsg(w.t.Context(), m)
	if err != nil {
		w.t.Fatal(err)
	}
	return ack.Sequence
}

// folded waits until services have folded an alert.
func (w *world) folded(seq uint64, services ...*Service) {
	w.t.Helper()
	for _, s := range services {
		if err := s.alerts.Wait(w.t.Context(), seq); err != nil {
			w.t.Fatal(err)
		}
	}
}

func ask[A any](w *world, subj string, q any) A {
	w.t.Helper()
	a, err := bus.Call[A](w.t.Context(), w.bus, subj, q)
	if err != nil {
		w.t.Fatalf("%s: %v", subj, err)
	}
	return a
}

func (w *world) get(uuid string) *message.Report {
	w.t.Helper()
	return ask[message.ReportReply](w, message.ReportsGet, message.ReportRequest{UUID: uuid}).Report
}

func (w *world) clear(uuid string) *message.Report {
	w.t.Helper()
	return ask[message.ReportReply](w, message.ReportsClear, message.ReportRequest{UUID: uuid}).Report
}

func text(t *testing.T, v any) string {
	t.Helper()
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

var criticalities = map[string]int{"ten": 10, "four": 4, "five": 5}

func TestReport(t *testing.T) {
	w := newWorld(t)
	s, _ := w.start(t.TempDir())
	if r := w.get(alpha); r != nil {
		t.Fatalf("report before any alert: %+v", r)
	}
	w.raise(beta, nil, "other one", "other, two")
	w.raiseAt(alpha, t0.Add(10*time.Second), criticalities, "four")
	w.raiseAt(alpha, t0, criticalities, "ten")
	w.raiseAt(alpha, t0.Add(time.Minute).UTC(), criticalities, "four", "ten")
	w.folded(w.raiseAt(alpha, t0.Add(20*time.Second), criticalities, "four", "five"), s)
	want := `{"identifier":"aaaaaaaa-0000-0000-0000-000000000001","alert-count":4,"count-by-signature":{"five":1,"four":3,"ten":2},` +
		`"signatures":["five","four","ten"],"techniques":["T-five","T-four","T-ten"],"tactics":["tactic-five","tactic-four","tactic-ten"],` +
		`"signature-count":6,"sum-alert-criticality":33,"avg-alert-criticality":8.25,"std-dev-alert-criticality":2.48,` +
		`"sum-rule-criticality":37,"avg-signature-criticality":6.16,"std-dev-signature-criticality":2.73,"signature-diversity":60,` +
		`"count-uniq-signatures":3,"signature-criticality-metric":18,"alert-criticality-metric":495,"score":513,` +
		`"start-time":"2024-05-06T07:08:09.1234567+02:00","median-time":"2024-05-06T07:08:39.1234567+02:00","stop-time":"2024-05-06T05:09:09.1234567Z"}`
	if got := text(t, w.get(alpha)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := testutil.ToFloat64(s.metrics.folded); got != 5 {
		t.Errorf("%v alerts folded", got)
	}
	if got := testutil.ToFloat64(s.metrics.census); got != 5 {
		t.Errorf("census of %v", got)
	}
	t.Run("list", func(t *testing.T) {
		reply := ask[message.ReportsListReply](w, message.ReportsList, message.ReportsListRequest{UUIDs: []string{gamma, beta, alpha, alpha}})
		if len(reply.Reports) != 2 || text(t, reply.Reports[alpha]) != want || text(t, reply.Reports[beta]) != text(t, w.get(beta)) {
			t.Errorf("list: %s", text(t, reply))
		}
		if reply := ask[message.ReportsListReply](w, message.ReportsList, message.ReportsListRequest{}); reply.Reports == nil || len(reply.Reports) != 0 {
			t.Errorf("list of none: %s", text(t, reply))
		}
	})
	t.Run("refused", func(t *testing.T) {
		for subj, q := range map[string]any{
			message.ReportsGet:   message.ReportRequest{UUID: "x.*"},
			message.ReportsClear: message.ReportRequest{UUID: "x.*"},
			message.ReportsList:  message.ReportsListRequest{UUIDs: []string{alpha, "x.*"}},
		} {
			if _, err := bus.Call[any](t.Context(), w.bus, subj, q); !fault.Is(err, fault.Invalid) {
				t.Errorf("%s: %v", subj, err)
			}
		}
	})
}

func TestClear(t *testing.T) {
	w := newWorld(t)
	s, _ := w.start(t.TempDir())
	if r := w.clear(alpha); r != nil {
		t.Fatalf("cleared %+v", r)
	}
	w.raise(alpha, criticalities, "ten")
	w.raise(beta, criticalities, "five")
	w.folded(w.raise(alpha, criticalities, "four"), s)
	before, other := text(t, w.get(alpha)), text(t, w.get(beta))
	if got := text(t, w.clear(alpha)); got != before {
		t.Errorf("cleared %s, want %s", got, before)
	}
	if r, again := w.get(alpha), w.clear(alpha); r != nil || again != nil {
		t.Errorf("after the clear: %v, %v", r, again)
	}
	if got := text(t, w.get(beta)); got != other {
		t.Errorf("another endpoint's report is %s, want %s", got, other)
	}
	w.folded(w.raise(alpha, criticalities, "ten"), s)
	r := w.get(alpha)
	if r.AlertCount != 1 || r.CountBySignature["ten"] != 1 || len(r.CountBySignature) != 1 || len(r.Techniques) != 1 {
		t.Errorf("the report goes on as %+v", r)
	}
	if r.Diversity != 33.33 {
		t.Errorf("diversity is %v: the census changed with the clear", r.Diversity)
	}
	if got := text(t, w.clear(alpha)); got != text(t, r) {
		t.Errorf("cleared %s", got)
	}
}

// Whatever was cleared when, a service that restarts and one that begins with
// nothing answer the same.
func TestRestartAndRebuild(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(t.TempDir(), "store")
	s, stop := w.start(dir)
	for i := range 30 {
		for _, uuid := range []string{alpha, beta, gamma} {
			w.folded(w.raise(uuid, criticalities, "ten", fmt.Sprintf("name %d", i)), s)
		}
		if i == 10 || i == 20 {
			w.clear(alpha)
		}
		if i == 29 {
			w.clear(gamma)
		}
	}
	all := func() string {
		return text(t, ask[message.ReportsListReply](w, message.ReportsList, message.ReportsListRequest{UUIDs: []string{alpha, beta, gamma}}))
	}
	want := all()
	if a, b := w.get(alpha), w.get(beta); a.AlertCount != 9 || b.AlertCount != 30 || w.get(gamma) != nil {
		t.Fatalf("reports are %s", want)
	}
	again := func(how string) {
		t.Helper()
		if got := all(); got != want {
			t.Errorf("after %s\n%s, want\n%s", how, got, want)
		}
	}
	stop()
	s, stop = w.start(dir)
	again("a restart")
	if n := testutil.ToFloat64(s.metrics.census); n != 31 {
		t.Errorf("census of %v after a restart", n)
	}
	stop()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	s, stop = w.start(dir)
	again("a rebuild")
	if n := testutil.ToFloat64(s.metrics.rebuilt); n != 0 {
		t.Errorf("a rebuild read %v endpoints' alerts twice", n)
	}
	stop()
	w.srv.Restart(t)
	w.bus = w.srv.Bus(t, access.Gateway)
	w.start(dir)
	again("a restart of NATS")
}

// put writes a clear as another replica does.
func (w *world) put(uuid string, cleared uint64) uint64 {
	w.t.Helper()
	kv, err := w.bus.JS.KeyValue(w.t.Context(), stream.Reports)
	if err != nil {
		w.t.Fatal(err)
	}
	revision, err := kv.PutString(w.t.Context(), uuid, text(w.t, message.ReportRecord{Cleared: cleared, Time: t0}))
	if err != nil {
		w.t.Fatal(err)
	}
	return revision
}

// A clear at any position, made by a replica that had folded less, or more,
// than this one, leaves the alerts behind it and no other; whether the next
// thing is a question or an alert.
func TestClearOfAnotherReplica(t *testing.T) {
	for _, first := range []string{"question", "alert", "another clear"} {
		t.Run(first, func(t *testing.T) {
			w := newWorld(t)
			dir := filepath.Join(t.TempDir(), "store")
			s, stop := w.start(dir)
			var seqs []uint64
			for i := range 20 {
				seqs = append(seqs, w.raise(alpha, criticalities, "ten", fmt.Sprintf("name %d", i)))
				w.raise(beta, criticalities, "four")
			}
			w.folded(seqs[19], s)
			check := func(from, to int) {
				t.Helper()
				want := map[string]int64{}
				for i := from; i < to; i++ {
					want["ten"]++
					want[fmt.Sprintf("name %d", i)]++
				}
				r := w.get(alpha)
				if r == nil || r.AlertCount != int64(to-from) || !maps.Equal(r.CountBySignature, want) || r.SignatureCount != 2*r.AlertCount {
					t.Fatalf("report of alerts %d to %d is %s", from, to, text(t, r))
				}
			}
			check(0, 20)
			if err := s.clears.Wait(t.Context(), w.put(alpha, seqs[4])); err != nil {
				t.Fatal(err)
			}
			next := 20
			switch first {
			case "question":
				check(5, 20)
			case "alert":
				w.folded(w.raise(alpha, criticalities, "ten", "name 20"), s)
				next++
				check(5, 21)
			case "another clear":
				if err := s.clears.Wait(t.Context(), w.put(alpha, seqs[9])); err != nil {
					t.Fatal(err)
				}
				check(10, 20)
			}
			if n := testutil.ToFloat64(s.metrics.rebuilt); n != 1 {
				t.Errorf("made anew %v times", n)
			}
			w.folded(w.raise(alpha, criticalities, "ten", fmt.Sprintf("name %d", next)), s)
			begin := map[string]int{"question": 5, "alert": 5, "another clear": 10}[first]
			check(begin, next+1)

			// One that lies ahead: the alerts up to it do not count when
			// they come.
			ahead := w.raise(gamma, criticalities, "five")
			w.folded(ahead, s)
			if err := s.clears.Wait(t.Context(), w.put(alpha, ahead+2)); err != nil {
				t.Fatal(err)
			}
			if r := w.get(alpha); r != nil {
				t.Fatalf("report is %s", text(t, r))
			}
			w.raise(alpha, criticalities, "five")
			w.raise(alpha, criticalities, "five")
			w.folded(w.raise(alpha, criticalities, "four"), s)
			r := w.get(alpha)
			if r.AlertCount != 1 || !maps.Equal(r.CountBySignature, map[string]int64{"four": 1}) {
				t.Fatalf("report is %s", text(t, r))
			}
			want, other := text(t, r), text(t, w.get(beta))
			stop()
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			w.start(dir)
			if got := text(t, w.get(alpha)); got != want {
				t.Errorf("after a rebuild %s, want %s", got, want)
			}
			if got := text(t, w.get(beta)); got != other {
				t.Errorf("after a rebuild %s, want %s", got, other)
			}
		})
	}
}

// While alerts come in, two replicas are asked to clear again and again:
// every alert is in one of the reports that are returned, or in the last one.
func TestReplicas(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(t.TempDir(), "store")
	a, _ := w.start(t.TempDir())
	b, stop := w.start(dir)
	const alerts = 600
	var mu sync.Mutex
	counted := map[string]int64{}
	take := func(r *message.Report) {
		mu.Lock()
		defer mu.Unlock()
		if r == nil {
			return
		}
		var sum int64
		for name, n := range r.CountBySignature {
			counted[name] += n
			sum += n
		}
		if sum != r.AlertCount {
			t.Errorf("a report of %d alerts has %d names", r.AlertCount, sum)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var group sync.WaitGroup
	for _, s := range []*Service{a, b, a, b} {
		group.Go(func() {
			for ctx.Err() == nil {
				reply, err := s.clear(context.WithoutCancel(ctx), message.ReportRequest{UUID: alpha})
				if err != nil {
					t.Errorf("clear: %v", err)
					return
				}
				take(reply.Report)
			}
		})
	}
	var last uint64
	for i := range alerts {
		last = w.raise(alpha, criticalities, fmt.Sprintf("name %d", i))
	}
	w.folded(last, a, b)
	cancel()
	group.Wait()
	take(w.get(alpha))
	for i := range alerts {
		if n := counted[fmt.Sprintf("name %d", i)]; n != 1 {
			t.Errorf("alert %d was counted %d times", i, n)
		}
	}
	for i := range 10 {
		last = w.raise(alpha, criticalities, fmt.Sprintf("name %d", i))
	}
	w.folded(last, a, b)
	of := func(s *Service) string {
		t.Helper()
		reply, err := s.get(t.Context(), message.ReportRequest{UUID: alpha})
		if err != nil {
			t.Fatal(err)
		}
		return text(t, reply)
	}
	want := of(a)
	if got := of(b); got != want {
		t.Errorf("the replicas answer\n%s\n%s", got, want)
	}
	stop()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	b, _ = w.start(dir)
	if got := of(b); got != want {
		t.Errorf("after a rebuild\n%s, want\n%s", got, want)
	}
}

// Alerts that are read again end where the record ended, whatever has come
// since.
func TestReplayEnds(t *testing.T) {
	w := newWorld(t)
	s, _ := w.start(t.TempDir())
	var seqs []uint64
	for i := range 6 {
		seqs = append(seqs, w.raise(alpha, criticalities, "ten", fmt.Sprintf("name %d", i)))
		w.raise(beta, criticalities, "ten")
	}
	for name, c := range map[string]struct {
		begin, last uint64
		want        int64
	}{
		"in the middle":            {seqs[0], seqs[3], 3},
		"at the end":               {seqs[3], seqs[5], 2},
		"behind what is left":      {seqs[5], seqs[5] + 1, 0},
		"at an alert that is gone": {0, seqs[2] + 1, 3},
	} {
		t.Run(name, func(t *testing.T) {
			tl := tally{uuid: alpha, record: record{Begin: c.begin}, counts: map[nameHash]count{}}
			if err := s.replay(t.Context(), &tl, c.last); err != nil {
				t.Fatal(err)
			}
			if got := tl.record.Stats.Alerts; got != c.want || tl.counts[hashOf("ten")].n != uint64(c.want) {
				t.Errorf("%d alerts, want %d", got, c.want)
			}
		})
	}
}

// Alerts that are read again where the copy is behind are waited for.
func TestReplayAtACopyThatIsBehind(t *testing.T) {
	w := newWorld(t)
	for i := range 6 {
		w.raise(alpha, criticalities, fmt.Sprintf("name %d", i))
	}
	for has := range 2 {
		b := natstest.NewBehind(t, w.bus.JS, stream.Alerts)
		b.Catchup(3 * has)
		s := &Service{cfg: Config{Env: lifecycle.Env{Bus: &bus.Bus{JS: b}}}}
		tl := tally{uuid: alpha, counts: map[nameHash]count{}}
		done := make(chan error, 1)
		go func() { done <- s.replay(t.Context(), &tl, 6) }()
		w.eventually("reading", func() bool { return b.Made.Load() == 1 })
		b.Catchup(6 - 3*has)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if got := tl.record.Stats.Alerts; got != 6 {
			t.Errorf("%d alerts, want 6", got)
		}
		if err := w.bus.JS.DeleteStream(t.Context(), "BEHIND"); err != nil {
			t.Fatal(err)
		}
	}
}

// Clears at positions of the past come in while alerts are folded and reports
// are asked for: each time it is quiet, the report is that of the alerts
// behind the last clear.
func TestClearsOfThePastUnderLoad(t *testing.T) {
	w := newWorld(t)
	s, _ := w.start(t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	t.Cleanup(func() { cancel(); group.Wait() })
	for range 4 {
		group.Go(func() {
			for ctx.Err() == nil {
				if _, _, _, err := s.report(context.WithoutCancel(ctx), alpha); err != nil {
					t.Errorf("report: %v", err)
					return
				}
				if err := s.sweep(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	var seqs []uint64
	begin := 0
	for round := range 25 {
		for i := range 24 {
			seqs = append(seqs, w.raise(alpha, criticalities, "ten", fmt.Sprintf("name %d", len(seqs))))
			if i == 12 {
				w.folded(seqs[len(seqs)-1], s) // so that the clear comes late
				begin = len(seqs) - 1 - round%7
				w.put(alpha, seqs[begin-1])
			}
		}
		w.folded(seqs[len(seqs)-1], s)
		want := map[string]int64{"ten": int64(len(seqs) - begin)}
		for i := begin; i < len(seqs); i++ {
			want[fmt.Sprintf("name %d", i)] = 1
		}
		if r := w.get(alpha); r == nil || r.AlertCount != want["ten"] || !maps.Equal(r.CountBySignature, want) {
			t.Fatalf("round %d: report of alerts %d to %d is %s", round, begin, len(seqs), text(t, r))
		}
	}
	if testutil.ToFloat64(s.metrics.rebuilt) == 0 {
		t.Error("no clear came late: the test does not show what it says")
	}
}

// Counts that nothing refers to any more are swept, the others stay.
func TestSweep(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	s, _ := w.start(dir)
	for i := range 5 {
		w.raise(alpha, criticalities, fmt.Sprintf("name %d", i))
		w.folded(w.raise(beta, criticalities, fmt.Sprintf("name %d", i)), s)
	}
	w.clear(alpha)
	w.folded(w.raise(alpha, criticalities, "ten"), s)
	want := text(t, w.get(alpha)) + text(t, w.get(beta))
	if err := s.sweep(); err != nil {
		t.Fatal(err)
	}
	if got := text(t, w.get(alpha)) + text(t, w.get(beta)); got != want {
		t.Errorf("after a sweep %s, want %s", got, want)
	}
	txn := s.db.NewTransaction(false)
	defer txn.Discard()
	for uuid, want := range map[string]int{alpha: 0, beta: 5} {
		counts, err := readCounts(txn, uuid, 0)
		if err != nil || len(counts) != want {
			t.Errorf("%s has %d counts from the beginning, want %d: %v", uuid, len(counts), want, err)
		}
	}
}

// What cannot be read is passed over and counted.
func TestMalformed(t *testing.T) {
	w := newWorld(t)
	s, _ := w.start(t.TempDir())
	w.folded(w.raise(alpha, criticalities, "ten"), s)
	want := text(t, w.get(alpha))
	for _, subj := range []string{"edr.alerts.low." + alpha, "edr.alerts.low.nobody"} {
		ack, err := w.bus.JS.Publish(t.Context(), subj, []byte("{"))
		if err != nil {
			t.Fatal(err)
		}
		w.folded(ack.Sequence, s)
	}
	kv, err := w.bus.JS.KeyValue(t.Context(), stream.Reports)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{alpha, "nobody"} {
		revision, err := kv.PutString(t.Context(), key, "{")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.clears.Wait(t.Context(), revision); err != nil {
			t.Fatal(err)
		}
	}
	if got := text(t, w.get(alpha)); got != want {
		t.Errorf("report is %s, want %s", got, want)
	}
	if n := testutil.ToFloat64(s.metrics.malformed); n != 4 {
		t.Errorf("%v messages counted as malformed", n)
	}
	if got := text(t, w.clear(alpha)); got != want {
		t.Errorf("cleared %s, want %s", got, want)
	}
	if r := w.get(alpha); r != nil {
		t.Errorf("after the clear: %s", text(t, r))
	}
}

// A time that can be read and not be written is taken as the same moment in
// UTC.
func TestTimeOfAnotherDay(t *testing.T) {
	w := newWorld(t)
	s, _ := w.start(t.TempDir())
	w.folded(w.raiseAt(alpha, t0.In(time.FixedZone("", 24*3600)), criticalities, "ten"), s)
	if r := w.get(alpha); r == nil || r.Start.Format(time.RFC3339Nano) != "2024-05-06T05:08:09.1234567Z" {
		t.Errorf("report is %s", text(t, r))
	}
}

// Names without end are bounded: alerts count, the names beyond do not, and a
// report always fits into an answer.
func TestBounds(t *testing.T) {
	w := newWorld(t)
	s, _ := w.start(t.TempDir())
	var last uint64
	next := 0
	flood := func(uuid string, alerts int) (raised int64) {
		for range alerts {
			names := make([]string, 120)
			for i := range names {
				next++
				names[i] = fmt.Sprintf("%0*d", maxNameLength-12, next)
			}
			raised += int64(len(names))
			last = w.raise(uuid, nil, names...)
		}
		w.folded(last, s)
		return raised
	}
	raised := flood(alpha, 60)
	r := w.get(alpha)
	if r.SignatureCount != raised || r.UniqSignatures >= raised || int64(len(r.Signatures)) != r.UniqSignatures {
		t.Errorf("%d names raised, %d counted, %d different", raised, r.SignatureCount, r.UniqSignatures)
	}
	if size := len(text(t, r)); size > maxReply || size < maxNameBytes*9/10 {
		t.Errorf("report of %d bytes", size)
	}
	if n := testutil.ToFloat64(s.metrics.uncounted); n != float64(raised-r.UniqSignatures) {
		t.Errorf("%v names uncounted of %d", n, raised)
	}
	w.folded(w.raise(alpha, nil, r.Signatures[0], strings.Repeat("n", maxNameLength+1)), s)
	if again := w.get(alpha); again.CountBySignature[r.Signatures[0]] != 2 || again.UniqSignatures != r.UniqSignatures {
		t.Errorf("a known name was counted %d times", again.CountBySignature[r.Signatures[0]])
	}
	flood(beta, 30)
	if w.get(beta) == nil {
		t.Error("no report")
	}
	_, err := bus.Call[any](t.Context(), w.bus, message.ReportsList, message.ReportsListRequest{UUIDs: []string{alpha, beta}})
	var f *fault.Error
	if !errors.As(err, &f) || f.Kind != fault.TooLarge {
		t.Errorf("list of large reports: %v", err)
	}
	many := make([]string, 2*maxNamesPerAlert)
	for i := range many {
		many[i] = fmt.Sprint(i)
	}
	w.folded(w.raise(gamma, nil, many...), s)
	if r := w.get(gamma); r.SignatureCount != int64(len(many)) || r.UniqSignatures != maxNamesPerAlert {
		t.Errorf("an alert of %d names counts %d, %d different", len(many), r.SignatureCount, r.UniqSignatures)
	}
}
