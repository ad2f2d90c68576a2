package ingest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
	"github.com/nightjar-edr/nightjar/pkg/view"
)

const (
	one = "5a92baeb-9384-47d3-92b4-a0db6f9b8c6d"
	two = "5A92baeb-9384-47d3-92b4-a0db6f9b8c6d" // another endpoint: UUIDs have a case
)

// rig is a service on a real server.
type rig struct {
	t    *testing.T
	srv  *natstest.Server
	bus  *bus.Bus
	own  func() *bus.Bus // makes the service's connection
	dir  string
	room func() error
	cfg  Config
	svc  *Service
	reg  *prometheus.Registry
	stop func() error
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, srv: natstest.Start(t), dir: t.TempDir()}
	r.bus = r.srv.Bus(t, "test")
	r.own = func() *bus.Bus { return r.srv.Bus(t, "log-ingest") }
	r.ensure()
	return r
}

// ensure makes the streams, as their owners do.
func (r *rig) ensure() {
	r.t.Helper()
	natstest.Removed(r.t, r.bus)
	for _, name := range []string{stream.Events, stream.Alerts} {
		if err := stream.Ensure(r.t.Context(), r.bus.JS, name, stream.Limits{}); err != nil {
			r.t.Fatal(err)
		}
	}
}

// start starts the service and waits until it answers.
func (r *rig) start() {
	r.t.Helper()
	r.launch()
	r.eventually("the service is ready", func() bool { return r.svc.Ready() == nil })
}

// launch starts the service.
func (r *rig) launch() {
	r.t.Helper()
	r.reg = prometheus.NewRegistry()
	r.cfg.MergeAfter = 20 * time.Millisecond // beside everything that is tested
	r.cfg.Env = lifecycle.Env{Bus: r.own(), Log: lifecycle.Discard(), Metrics: r.reg, DataDir: filepath.Join(r.dir, "store"), Room: r.room}
	svc, err := New(r.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.svc = svc
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- svc.Run(ctx) }()
	stopped := false
	r.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(20 * time.Second):
			return errors.New("the service does not stop")
		}
	}
	r.t.Cleanup(func() {
		if err := r.stop(); err != nil {
			r.t.Error(err)
		}
	})
}

// restart stops the service and starts it again, on an empty store if asked.
func (r *rig) restart(empty bool) {
	r.t.Helper()
	if err := r.stop(); err != nil {
		r.t.Fatal(err)
	}
	if empty {
		if err := os.RemoveAll(r.cfg.DataDir); err != nil {
			r.t.Fatal(err)
		}
	}
	r.start()
}

func (r *rig) eventually(what string, ok func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("not within a minute: %s", what)
		}
	}
}

// settle waits until everything published is folded.
func (r *rig) settle() {
	r.t.Helper()
	r.svc.holding.mu.Lock()
	parts := slices.Clone(r.svc.holding.parts)
	r.svc.holding.mu.Unlock()
	for _, t := range parts {
		for _, v := range t.views() {
			ctx, cancel := context.WithTimeout(r.t.Context(), 15*time.Second)
			err := v.Sync(ctx)
			cancel()
			if err != nil {
				r.t.Fatal(err)
			}
		}
	}
}

// send publishes a batch of lines received at a time.
func (r *rig) send(endpoint string, received time.Time, lines ...string) {
	r.t.Helper()
	b := message.Batch{Endpoint: endpoint, Received: received}
	m := b.BatchMsg([]byte(strings.Join(lines, "\n")+"\n"), len(lines))
	m.Header.Del("Nats-Msg-Id") // what is repeated must come through
	if _, err := r.bus.JS.PublishMsg(r.t.Context(), m); err != nil {
		r.t.Fatal(err)
	}
}

// mark publishes the alert of a line.
func (r *rig) mark(endpoint, line string, received time.Time, criticality int) string {
	r.t.Helper()
	info, err := event.Scan([]byte(line))
	if err != nil {
		r.t.Fatal(err)
	}
	marked, err := event.WithGeneInfo([]byte(line), &info, event.GeneInfo{Signature: []string{"Rule"}, Criticality: criticality})
	if err != nil {
		r.t.Fatal(err)
	}
	a := message.Alert{Endpoint: endpoint, Received: received, Time: received, Hash: event.HashOf([]byte(line)), Line: marked,
		Signatures: []string{"Rule"}, Criticality: criticality, Origin: message.OriginManager}
	if info.Timed() {
		a.Time, a.Timed = info.Time, true
	}
	m, err := a.Msg()
	if err != nil {
		r.t.Fatal(err)
	}
	m.Header.Del("Nats-Msg-Id")
	if _, err := r.bus.JS.PublishMsg(r.t.Context(), m); err != nil {
		r.t.Fatal(err)
	}
	return string(marked)
}

// page asks for one page.
func (r *rig) page(q message.LogsRequest) (lines []string, next string, err error) {
	r.t.Helper()
	data, err := json.Marshal(q)
	if err != nil {
		r.t.Fatal(err)
	}
	m, err := r.bus.Request(r.t.Context(), subject.Logs(subject.PartitionOf(q.Endpoint), message.LogsQuery), data)
	if err != nil {
		return nil, "", err
	}
	text, err := message.Decompress(nil, m.Data)
	if err != nil {
		r.t.Fatal(err)
	}
	for l := range bytes.Lines(text) {
		lines = append(lines, string(bytes.TrimSuffix(l, []byte("\n"))))
	}
	if got := m.Header.Get(message.HeaderCount); got != strconv.Itoa(len(lines)) {
		r.t.Fatalf("%s: %q on a page of %d lines", message.HeaderCount, got, len(lines))
	}
	return lines, m.Header.Get(message.HeaderNext), nil
}

// ask asks for all pages.
func (r *rig) ask(q message.LogsRequest) []string {
	r.t.Helper()
	var all []string
	for {
		lines, next, err := r.page(q)
		if err != nil {
			r.t.Fatal(err)
		}
		all = append(all, lines...)
		if next == "" {
			return all
		}
		q.Cursor, q.Skip = next, 0
	}
}

func (r *rig) metric(name string) float64 {
	r.t.Helper()
	families, err := r.reg.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() == "nightjar_log_ingest_"+name {
			for _, m := range f.GetMetric() {
				sum += value(m)
			}
			return sum
		}
	}
	r.t.Fatalf("no metric %s", name)
	return 0
}

func value(m *dto.Metric) float64 {
	return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
}

func line(at time.Time, n int) string {
	return fmt.Sprintf(`{"Event":{"EventData":{"n":%d},"System":{"TimeCreated":{"SystemTime":%q}}}}`, n, at.Format(time.RFC3339Nano))
}

func equal(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\ngot  %s\nwant %s", what, strings.Join(got, "\n     "), strings.Join(want, "\n     "))
	}
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var noon = time.Date(2025, 10, 26, 12, 0, 0, 0, time.UTC)

// TestOrder sends events late, early and over the borders of hours and days.
func TestOrder(t *testing.T) {
	r := newRig(t)
	r.start()
	night := time.Date(2025, 10, 26, 23, 59, 59, 0, time.UTC)
	lines := []string{
		line(night, 0), line(night.Add(999*time.Millisecond), 1), line(night.Add(time.Second), 2),
		line(night.Add(time.Second).In(time.FixedZone("", 3*3600)), 3),
		line(night.Add(time.Hour+time.Second), 4), line(night.AddDate(1, 0, 0), 5),
	}
	early := line(time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC), 6)
	r.send(one, noon, lines[4], lines[0])
	r.send(one, noon, lines[2], lines[5], lines[3])
	r.send(two, noon, line(night, 7))
	r.send(one, noon, lines[1], early)
	r.settle()
	q := message.LogsRequest{Endpoint: one}
	equal(t, "all", r.ask(q), append([]string{early}, lines...))
	q.Start, q.Stop = night, night.Add(time.Hour+time.Second)
	equal(t, "exclusive bounds", r.ask(q), lines[1:4])
	q.Start, q.Stop = time.Time{}, night
	equal(t, "only stop", r.ask(q), []string{early})
	q.Start, q.Stop = night.In(time.FixedZone("", -9*3600)), time.Time{}
	equal(t, "only start", r.ask(q), lines[1:])
	q.Skip, q.Limit = 1, 2
	got, next, err := r.page(q)
	if err != nil || next == "" {
		t.Fatalf("next %q, error %v", next, err)
	}
	equal(t, "skip and limit", got, lines[2:4])
	equal(t, "pages", r.ask(q), lines[2:])
	equal(t, "the other endpoint", r.ask(message.LogsRequest{Endpoint: two}), []string{line(night, 7)})
	equal(t, "an unknown endpoint", r.ask(message.LogsRequest{Endpoint: strings.Repeat("0", 8) + one[8:]}), nil)
	if got := r.metric("requests_total"); got == 0 || got != r.metric("request_duration_seconds") {
		t.Errorf("requests_total %v, request_duration_seconds %v", got, r.metric("request_duration_seconds"))
	}
	if r.metric("store_bytes") < 0 || r.metric("answered_lines_total") == 0 {
		t.Error("the answers are not counted")
	}
}

// TestRepeated sends events again: in the same batch, in others, much later,
// to a service that was started again, and to one with an empty store.
func TestRepeated(t *testing.T) {
	r := newRig(t)
	r.start()
	a, b, c := line(noon, 1), line(noon, 2), line(noon.Add(time.Second), 3)
	u, v := `{"no":"time"}`, `{"Event":{"System":{"TimeCreated":{"SystemTime":"yesterday"}}}}`
	r.send(one, noon, a, u, a, u)
	r.send(one, noon.Add(time.Minute), c)
	r.send(two, noon, a, u)
	r.send(one, noon.Add(time.Hour), b, a, c, u)
	for n := range 60 { // much comes between
		r.send(one, noon, line(noon.Add(time.Duration(n)*time.Minute), 1000+n))
	}
	r.settle()
	r.restart(false)
	r.send(one, noon.Add(72*time.Hour), v, c, u, b, a)
	r.settle()
	check := func(what string) {
		t.Helper()
		got := r.ask(message.LogsRequest{Endpoint: one, Stop: noon.Add(time.Minute)})
		equal(t, what, got, []string{a, u, b, line(noon, 1000), c})
		got = r.ask(message.LogsRequest{Endpoint: one, Start: noon.Add(59 * time.Minute)})
		equal(t, what+": untimed", got, []string{v})
		equal(t, what+": the other endpoint", r.ask(message.LogsRequest{Endpoint: two}), []string{a, u})
	}
	check("after a restart")
	if got := r.metric("events_repeated_total"); got != 4 {
		t.Errorf("events_repeated_total %v since the restart, want 4", got)
	}
	r.restart(true)
	check("built again")
	if stored, repeated := r.metric("events_stored_total"), r.metric("events_repeated_total"); stored != 67 || repeated != 9 {
		t.Errorf("events_stored_total %v, events_repeated_total %v, want 67 and 9", stored, repeated)
	}
	if got := r.metric("events_untimed_total"); got != 3 {
		t.Errorf("events_untimed_total %v, want 3", got)
	}
}

// TestDetections holds that events that are alerts are shown as such among
// all events, and alone.
func TestDetections(t *testing.T) {
	r := newRig(t)
	r.start()
	var lines []string
	for n := range 6 {
		lines = append(lines, line(noon.Add(time.Duration(n/2)*time.Second), n))
	}
	untimed := `{"detection":{"n":1}}`
	received := noon.Add(time.Hour)
	r.send(one, received, lines...)
	r.send(one, received, untimed)
	r.send(two, received, lines[4])
	r.settle()
	equal(t, "before", r.ask(message.LogsRequest{Endpoint: one}), append(slices.Clone(lines), untimed))
	late := r.mark(one, lines[3], received, 9)
	early := r.mark(one, lines[0], received, 2)
	none := r.mark(one, untimed, received, 10)
	again := r.mark(one, lines[3], received, 5) // a repetition, to be passed over
	r.mark(one, untimed, received.Add(time.Minute), 10)
	r.settle()
	want := append(slices.Clone(lines), none)
	want[0], want[3] = early, late
	check := func(what string) {
		t.Helper()
		for limit := range 4 {
			equal(t, fmt.Sprintf("%s: events, limit %d", what, limit), r.ask(message.LogsRequest{Endpoint: one, Limit: limit}), want)
		}
		equal(t, what+": alerts", r.ask(message.LogsRequest{Endpoint: one, Alerts: true}), []string{early, late, none})
		equal(t, what+": alerts of a time", r.ask(message.LogsRequest{Endpoint: one, Alerts: true, Start: noon, Stop: received}), []string{late})
		equal(t, what+": events of the other endpoint", r.ask(message.LogsRequest{Endpoint: two}), []string{lines[4]})
		equal(t, what+": alerts of the other endpoint", r.ask(message.LogsRequest{Endpoint: two, Alerts: true}), nil)
	}
	check("folded")
	if again == late {
		t.Fatal("the repetition is no other line")
	}
	r.restart(true)
	check("built again")
	if got := r.metric("alerts_stored_total"); got != 3 {
		t.Errorf("alerts_stored_total %v, want 3", got)
	}
}

// TestBadRequests holds that a request that cannot be answered is refused
// with the reason.
func TestBadRequests(t *testing.T) {
	r := newRig(t)
	r.start()
	for name, q := range map[string]message.LogsRequest{
		"endpoint": {Endpoint: "x"},
		"cursor":   {Endpoint: one, Cursor: "x"},
		"skip":     {Endpoint: one, Skip: -1},
		"limit":    {Endpoint: one, Limit: -1},
	} {
		if _, _, err := r.page(q); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, want an invalid request", name, err)
		}
	}
	if _, err := r.bus.Request(t.Context(), subject.Logs(0, message.LogsQuery), []byte("{")); !fault.Is(err, fault.Invalid) {
		t.Errorf("no JSON: %v, want an invalid request", err)
	}
}

// TestUnreadable holds that what cannot be read is counted and passed over.
func TestUnreadable(t *testing.T) {
	r := newRig(t)
	r.start()
	for _, subj := range []string{subject.Events(one), subject.Alerts(subject.High, one), "edr.events.3.x"} {
		if _, err := r.bus.JS.Publish(t.Context(), subj, []byte("junk")); err != nil {
			t.Fatal(err)
		}
	}
	r.send("not-a-uuid", noon, line(noon, 1))
	r.send(one, noon, line(noon, 1))
	r.settle()
	equal(t, "behind what is unreadable", r.ask(message.LogsRequest{Endpoint: one}), []string{line(noon, 1)})
	if got := r.metric("unreadable_total"); got != 4 {
		t.Errorf("unreadable_total %v, want 4", got)
	}
	if err := r.svc.Ready(); err != nil {
		t.Errorf("not ready: %v", err)
	}
}

// TestLongLine sends the longest line there may be.
func TestLongLine(t *testing.T) {
	r := newRig(t)
	r.start()
	long := line(noon, 1)
	long = long[:len(long)-1] + `,"x":"` + strings.Repeat("y", message.MaxLine-len(long)-7) + `"}`
	if len(long) != message.MaxLine {
		t.Fatalf("%d bytes", len(long))
	}
	r.send(one, noon, long)
	r.send(one, noon, line(noon.Add(-1), 2), line(noon.Add(1), 3))
	marked := r.mark(one, long, noon, 4)
	r.settle()
	equal(t, "events", r.ask(message.LogsRequest{Endpoint: one}), []string{line(noon.Add(-1), 2), marked, line(noon.Add(1), 3)})
}

// TestAskWhileFolding asks while events come in: each answer is a beginning
// of what is there in the end.
func TestAskWhileFolding(t *testing.T) {
	r := newRig(t)
	r.start()
	const batches, each = 60, 20
	var want []string
	sent := make(chan error, 1)
	for n := range batches * each {
		want = append(want, line(noon.Add(time.Duration(n)*time.Second), n))
	}
	go func() {
		for n := range batches {
			b := message.Batch{Endpoint: one, Received: noon}
			m := b.BatchMsg([]byte(strings.Join(want[n*each:(n+1)*each], "\n")+"\n"), each)
			if _, err := r.bus.JS.PublishMsg(context.Background(), m); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	done := false
	for !done {
		select {
		case err := <-sent:
			if err != nil {
				t.Fatal(err)
			}
			r.settle()
			done = true
		default:
		}
		got := r.ask(message.LogsRequest{Endpoint: one, Limit: 150})
		if len(got)%each != 0 || !slices.Equal(got, want[:len(got)]) {
			t.Fatalf("%d events that are no beginning of all", len(got))
		}
		if done && len(got) != len(want) {
			t.Fatalf("%d events in the end, want %d", len(got), len(want))
		}
	}
}

// TestStop holds that stopping is clean while a request is being answered,
// and that a stopped service is not ready.
func TestStop(t *testing.T) {
	r := newRig(t)
	r.start()
	r.send(one, noon, line(noon, 1))
	r.settle()
	answered := make(chan error, 1)
	go func() {
		for {
			if _, _, err := r.page(message.LogsRequest{Endpoint: one}); err != nil {
				answered <- err
				return
			}
		}
	}()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; !fault.Is(err, fault.Unavailable) {
		t.Errorf("a request to a stopped service: %v, want unavailable", err)
	}
	if r.svc.Ready() == nil {
		t.Error("a stopped service is ready")
	}
}

// TestGap holds that a service whose stream was made anew says so, goes on
// answering what it has, and is not ready.
func TestGap(t *testing.T) {
	r := newRig(t)
	r.start()
	r.send(one, noon, line(noon, 1))
	r.settle()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if err := r.bus.JS.DeleteStream(t.Context(), stream.Events); err != nil {
		t.Fatal(err)
	}
	if err := stream.Ensure(t.Context(), r.bus.JS, stream.Events, stream.Limits{}); err != nil {
		t.Fatal(err)
	}
	r.launch()
	r.eventually("the service says that there is a gap", func() bool { return errors.Is(r.svc.Ready(), view.ErrGap) })
	r.eventually("the service answers", func() bool {
		got, _, err := r.page(message.LogsRequest{Endpoint: one})
		return err == nil && slices.Equal(got, []string{line(noon, 1)})
	})
}
