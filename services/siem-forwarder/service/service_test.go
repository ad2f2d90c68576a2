package forwarder_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
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
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
	"github.com/nightjar-edr/nightjar/services/siem-forwarder/internal/alerttest"
	"github.com/nightjar-edr/nightjar/services/siem-forwarder/internal/target"
	forwarder "github.com/nightjar-edr/nightjar/services/siem-forwarder/service"
)

const deadline = 30 * time.Second

// world is a server with the stream of alerts, a SIEM's consumer, and a target
// that remembers the ids of what it took, in its order.
type world struct {
	t        *testing.T
	own, all *bus.Bus
	consumer jetstream.Consumer
	target   *httptest.Server
	dir      string
	// last is the sequence of the newest alert.
	last uint64

	mu    sync.Mutex
	taken []string
	// refuse answers instead of taking, unless it is nil or returns false.
	refuse func(w http.ResponseWriter, id string) bool
}

func newWorld(t *testing.T, ackWait time.Duration) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir()}
	w.own, w.all = natstest.RestrictedTo(t, "siem", access.ForSIEM("siem"))
	if err := stream.Ensure(t.Context(), w.all.JS, stream.Alerts, stream.Limits{}); err != nil {
		t.Fatal(err)
	}
	var err error
	w.consumer, err = w.all.JS.CreateConsumer(t.Context(), stream.Alerts, jetstream.ConsumerConfig{
		Durable: "siem", AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait, MaxAckPending: 1000,
	})
	if err != nil {
		t.Fatal(err)
	}
	w.target = httptest.NewServer(http.HandlerFunc(w.serve))
	t.Cleanup(w.target.Close)
	t.Cleanup(func() {
		if err := w.own.NC.LastError(); err != nil {
			t.Errorf("the server refused something: %v", err)
		}
	})
	return w
}

// serve is a bulk API with one document in each request, or several.
func (w *world) serve(rw http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		w.t.Error(err)
	}
	var items []string
	lines := bytes.Split(bytes.TrimSpace(body), []byte("\n"))
	for i := 0; i+1 < len(lines); i += 2 {
		var action struct {
			Create struct {
				ID string `json:"_id"`
			}
		}
		if err := json.Unmarshal(lines[i], &action); err != nil {
			w.t.Error(err)
		}
		id := action.Create.ID
		w.mu.Lock()
		refuse := w.refuse
		w.mu.Unlock()
		answer := httptest.NewRecorder()
		if refuse != nil && refuse(answer, id) {
			for k, v := range answer.Header() {
				rw.Header()[k] = v
			}
			items = append(items, fmt.Sprintf(`{"create":{"status":%d}}`, answer.Code))
			if answer.Code == http.StatusServiceUnavailable {
				rw.WriteHeader(answer.Code)
				return
			}
			continue
		}
		w.mu.Lock()
		w.taken = append(w.taken, id)
		w.mu.Unlock()
		items = append(items, `{"create":{"status":201}}`)
	}
	_, _ = io.WriteString(rw, `{"items":[`+strings.Join(items, ",")+`]}`)
}

func (w *world) refusing(f func(w http.ResponseWriter, id string) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refuse = f
}

func (w *world) got() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.taken)
}

// start starts a forwarder; stop stops it and demands a clean end.
func (w *world) start(change func(*forwarder.Config)) (s *forwarder.Service, reg *prometheus.Registry, stop func()) {
	w.t.Helper()
	reg = prometheus.NewRegistry()
	cfg := forwarder.Config{
		Env: lifecycle.Env{Bus: w.own, Log: lifecycle.Discard(), Metrics: reg, DataDir: w.dir}, SIEM: "siem", Format: "ecs",
		Target: target.Options{Output: w.target.URL, Webhook: target.Elastic, Index: "i", Timeout: deadline}, Batch: 5, Linger: 50 * time.Millisecond,
	}
	if change != nil {
		change(&cfg)
	}
	s, err := forwarder.New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				w.t.Errorf("Run: %v", err)
			}
		case <-time.After(deadline):
			w.t.Error("not stopped")
		}
	})
	w.t.Cleanup(stop)
	return s, reg, stop
}

// raise puts alerts into the stream and returns their ids.
func (w *world) raise(n int) []string {
	w.t.Helper()
	var ids []string
	for i := range n {
		m := alerttest.Message(w.t, "h", fmt.Sprintf(`{"i":%d,"at":%d}`, i, time.Now().UnixNano()), []string{"r"}, 1+i%10, message.OriginManager)
		ids = append(ids, w.publish(m))
	}
	return ids
}

func (w *world) publish(m *nats.Msg) string {
	w.t.Helper()
	ack, err := w.all.JS.PublishMsg(w.t.Context(), m)
	if err != nil {
		w.t.Fatal(err)
	}
	w.last = ack.Sequence
	return m.Header.Get(nats.MsgIdHdr)
}

// info is the state of the consumer.
func (w *world) info() *jetstream.ConsumerInfo {
	w.t.Helper()
	info, err := w.consumer.Info(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return info
}

func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	for end := time.Now().Add(deadline); ; time.Sleep(10 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// settled waits until the consumer has nothing left.
func (w *world) settled() {
	w.t.Helper()
	eventually(w.t, "everything acknowledged", func() error {
		// The consumer hears of a message a moment after its publisher does.
		if i := w.info(); i.NumPending != 0 || i.NumAckPending != 0 || i.Delivered.Stream < w.last {
			return fmt.Errorf("%d pending, %d without acknowledgement, delivered up to %d of %d", i.NumPending, i.NumAckPending, i.Delivered.Stream, w.last)
		}
		return nil
	})
}

func metric(t *testing.T, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var sum float64
	for _, f := range families {
		if f.GetName() == "nightjar_siem_forwarder_"+name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// TestForward hands over what was there and what comes, in the stream's order,
// and goes on where another forwarder stopped. The SIEM's own rights suffice.
func TestForward(t *testing.T) {
	t.Parallel()
	w := newWorld(t, deadline)
	want := w.raise(12)
	s, reg, stop := w.start(nil)
	eventually(t, "ready", s.Ready)
	want = append(want, w.raise(3)...)
	w.settled()
	stop()
	want = append(want, w.raise(4)...)
	w.start(nil)
	w.settled()
	if got := w.got(); !slices.Equal(got, want) {
		t.Errorf("got %d alerts: %v\nwant %d: %v", len(got), got, len(want), want)
	}
	if n := metric(t, reg, "alerts_forwarded_total"); n != 15 {
		t.Errorf("%v alerts counted", n)
	}
}

// TestUnavailable: while the target refuses, the forwarder is not ready, and
// keeps what it has in hand from being delivered to anyone else for longer than
// the consumer waits. When the target is back it gets everything once, in order.
func TestUnavailable(t *testing.T) {
	t.Parallel()
	const ackWait = 3 * time.Second
	w := newWorld(t, ackWait)
	w.refusing(func(rw http.ResponseWriter, _ string) bool {
		rw.Header().Set("Retry-After", "7") // longer than ackWait
		rw.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	want := w.raise(5)
	// All in one batch: what it has not fetched is anyone's.
	s, reg, _ := w.start(func(c *forwarder.Config) { c.Linger = ackWait / 2 })
	eventually(t, "not ready, with all in hand", func() error {
		if n := metric(t, reg, "alerts_in_hand"); n != float64(len(want)) {
			return fmt.Errorf("%v alerts are in hand", n)
		}
		if err := s.Ready(); err == nil || !strings.Contains(err.Error(), "503") {
			return fmt.Errorf("ready: %w", err)
		}
		return nil
	})
	others, err := w.consumer.Fetch(5, jetstream.FetchMaxWait(2*ackWait))
	if err != nil {
		t.Fatal(err)
	}
	for m := range others.Messages() {
		t.Errorf("%s was delivered to another one", m.Headers().Get(nats.MsgIdHdr))
	}
	w.refusing(nil)
	w.settled()
	eventually(t, "ready", s.Ready)
	if got := w.got(); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if n := metric(t, reg, "failures_total"); n < 1 {
		t.Errorf("%v failures counted", n)
	}
}

// TestRefused: an alert that the target refuses for good, or that cannot be
// read, goes to a file with all of it; the others go on.
func TestRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, deadline)
	want := w.raise(8)
	bad := want[3]
	w.refusing(func(rw http.ResponseWriter, id string) bool {
		if id == bad {
			rw.WriteHeader(http.StatusBadRequest)
		}
		return id == bad
	})
	unreadable := nats.NewMsg("edr.alerts.low." + alerttest.Endpoint)
	unreadable.Data = []byte("no JSON")
	unreadable.Header.Set(nats.MsgIdHdr, "unreadable")
	w.publish(unreadable)
	_, reg, _ := w.start(nil)
	w.settled()
	if got := w.got(); !slices.Equal(got, slices.Concat(want[:3], want[4:])) {
		t.Errorf("got %v", got)
	}
	data, err := os.ReadFile(filepath.Join(w.dir, "refused.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	type line struct {
		ID, Reason, Subject string
		Header              nats.Header
		Alert               json.RawMessage
	}
	found := map[string]line{}
	for text := range bytes.Lines(data) {
		var l line
		if err := json.Unmarshal(text, &l); err != nil {
			t.Fatal(err)
		}
		found[l.ID] = l
	}
	if l := found[bad]; len(found) != 2 || !strings.Contains(l.Reason, "400") || l.Header.Get(message.HeaderEndpoint) != alerttest.Endpoint || !bytes.Contains(l.Alert, []byte(`"EdrData"`)) {
		t.Errorf("refused: %+v", found)
	}
	if l := found["unreadable"]; string(l.Alert) != `"no JSON"` || l.Reason == "" {
		t.Errorf("unreadable: %+v", l)
	}
	if n := metric(t, reg, "rejected_total"); n != 2 {
		t.Errorf("%v counted", n)
	}
}

// TestRefusedFileFails: while refused alerts cannot be set aside, they are not
// acknowledged.
func TestRefusedFileFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t, deadline)
	blocked := filepath.Join(w.dir, "refused.jsonl")
	if err := os.Mkdir(blocked, 0o700); err != nil {
		t.Fatal(err)
	}
	w.refusing(func(rw http.ResponseWriter, _ string) bool { rw.WriteHeader(http.StatusBadRequest); return true })
	s, _, _ := w.start(nil)
	w.raise(1)
	eventually(t, "not ready", func() error {
		if err := s.Ready(); err == nil || !strings.Contains(err.Error(), "refused") {
			return fmt.Errorf("ready: %w", err)
		}
		return nil
	})
	if i := w.info(); i.NumAckPending != 1 {
		t.Errorf("%d without acknowledgement", i.NumAckPending)
	}
	if err := os.Remove(blocked); err != nil {
		t.Fatal(err)
	}
	w.settled()
	if data, err := os.ReadFile(blocked); err != nil || bytes.Count(data, []byte("\n")) != 1 {
		t.Errorf("%q, %v", data, err)
	}
}

// TestRefusedWait: with refused set to wait nothing passes a refused alert.
func TestRefusedWait(t *testing.T) {
	t.Parallel()
	w := newWorld(t, deadline)
	want := w.raise(6)
	var asked atomic.Int32
	w.refusing(func(rw http.ResponseWriter, id string) bool {
		if id == want[0] {
			asked.Add(1)
			rw.WriteHeader(http.StatusBadRequest)
		}
		return id == want[0]
	})
	w.start(func(c *forwarder.Config) { c.Refused, c.Batch = forwarder.RefusedWait, 1 })
	eventually(t, "tried again", func() error {
		if n := asked.Load(); n < 2 {
			return fmt.Errorf("tried %d times", n)
		}
		return nil
	})
	if got := w.got(); len(got) != 0 {
		t.Errorf("passed by %v", got)
	}
	w.refusing(nil)
	w.settled()
	if got := w.got(); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestMinSeverity acknowledges what is not to be forwarded.
func TestMinSeverity(t *testing.T) {
	t.Parallel()
	w := newWorld(t, deadline)
	want := w.raise(10)[6:] // criticality 7 to 10
	_, reg, _ := w.start(func(c *forwarder.Config) { c.MinSeverity = "high" })
	w.settled()
	if got := w.got(); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if n := metric(t, reg, "filtered_total"); n != 6 {
		t.Errorf("%v counted", n)
	}
}

// TestStopGivesBack: alerts in hand that the target did not take are delivered
// to the next forwarder at once, not after the consumer's wait.
func TestStopGivesBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, time.Hour)
	w.refusing(func(rw http.ResponseWriter, _ string) bool {
		rw.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	s, _, stop := w.start(nil)
	want := w.raise(4)
	eventually(t, "not ready", func() error {
		if s.Ready() == nil {
			return errors.New("ready")
		}
		return nil
	})
	stop()
	w.refusing(nil)
	w.start(nil)
	w.settled()
	got := w.got()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestConsumerComesLater: the forwarder waits for a manager that has not made
// the consumer yet, and says so.
func TestConsumerComesLater(t *testing.T) {
	t.Parallel()
	w := newWorld(t, deadline)
	cfg := w.info().Config
	if err := w.all.JS.DeleteConsumer(t.Context(), stream.Alerts, "siem"); err != nil {
		t.Fatal(err)
	}
	s, _, _ := w.start(nil)
	eventually(t, "not ready", func() error {
		if err := s.Ready(); err == nil || !strings.Contains(err.Error(), "consumer siem") {
			return fmt.Errorf("ready: %w", err)
		}
		return nil
	})
	var err error
	if w.consumer, err = w.all.JS.CreateConsumer(t.Context(), stream.Alerts, cfg); err != nil {
		t.Fatal(err)
	}
	want := w.raise(2)
	w.settled()
	if got := w.got(); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestConfig(t *testing.T) {
	for name, change := range map[string]func(*forwarder.Config){
		"siem": func(c *forwarder.Config) { c.SIEM = "a.b" }, "format": func(c *forwarder.Config) { c.Format = "xml" },
		"batch": func(c *forwarder.Config) { c.Batch = 1001 }, "syslog-max": func(c *forwarder.Config) { c.Target.SyslogBytes = 100 },
		"refused": func(c *forwarder.Config) { c.Refused = "drop" }, "min-severity": func(c *forwarder.Config) { c.MinSeverity = "worst" },
		"webhook:":   func(c *forwarder.Config) { c.Target.Output = "https://x" },
		"no http":    func(c *forwarder.Config) { c.Target.Webhook = target.Plain },
		"token-file": func(c *forwarder.Config) { c.Target.TokenFile = "x" },
		"ftp":        func(c *forwarder.Config) { c.Target.Output = "ftp://x" },
	} {
		cfg := forwarder.Config{Env: lifecycle.Env{Metrics: prometheus.NewRegistry()}, SIEM: "siem", Format: "ecs", Target: target.Options{Output: "stdout"}}
		change(&cfg)
		if _, err := forwarder.New(cfg); !errors.Is(err, lifecycle.ErrUsage) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
