package ruleengine

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
)

const (
	endpointA = "11111111-2222-3333-4444-555555555555"
	endpointB = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
)

// received is the time of receipt of all batches of the tests.
var received = time.Date(2030, 5, 6, 7, 8, 9, 10, time.UTC)

// rig is a NATS server with the streams that other services own.
type rig struct {
	t   *testing.T
	srv *natstest.Server
	bus *bus.Bus
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, srv: natstest.Start(t)}
	r.bus = r.srv.Bus(t, "test")
	natstest.Removed(t, r.bus)
	for _, name := range []string{stream.Events, stream.DeadLetters} {
		if err := stream.Ensure(t.Context(), r.bus.JS, name, stream.Limits{}); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// replica is a running service.
type replica struct {
	t       *testing.T
	rig     *rig
	s       *Service
	bus     *bus.Bus
	metrics *prometheus.Registry
	cancel  context.CancelFunc
	done    chan error
}

// config returns the settings of a replica on a store of its own.
func (r *rig) config() Config {
	return Config{
		Env: lifecycle.Env{
			Bus: r.srv.Bus(r.t, access.Rules), Log: lifecycle.Discard(), Metrics: prometheus.NewRegistry(), DataDir: r.t.TempDir(), Replicas: 1,
		},
		RetentionAlerts: DefaultRetentionAlerts, Workers: 2, ackEvery: 20 * time.Millisecond,
	}
}

// launch runs a service without waiting for it.
func (r *rig) launch(cfg Config) *replica {
	r.t.Helper()
	s, err := New(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	x := &replica{t: r.t, rig: r, s: s, bus: cfg.Bus, metrics: cfg.Metrics.(*prometheus.Registry), cancel: cancel, done: make(chan error, 1)}
	go func() { x.done <- s.Run(ctx) }()
	r.t.Cleanup(x.stop)
	return x
}

// start runs a service and waits until it is ready.
func (r *rig) start(cfg Config) *replica {
	r.t.Helper()
	x := r.launch(cfg)
	eventually(r.t, func() error { return x.s.Ready() })
	return x
}

// stop ends a service in order. It may be called twice.
func (x *replica) stop() {
	x.cancel()
	if x.done == nil {
		return
	}
	if err := <-x.done; err != nil {
		x.t.Errorf("Run: %v", err)
	}
	x.done = nil
}

// eventually waits until f returns nil.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within the time: %v", err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// batch makes the message of a batch of lines.
func batch(endpoint string, lines ...string) *message.Batch {
	b := &message.Batch{Endpoint: endpoint, Hostname: "WS-01", IP: "192.0.2.7", Received: received, TraceParent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
	for _, l := range lines {
		b.Lines = append(b.Lines, []byte(l))
	}
	return b
}

// containers returns the object store, which a replica has made.
func (r *rig) containers() jetstream.ObjectStore {
	r.t.Helper()
	store, err := r.bus.JS.ObjectStore(r.t.Context(), stream.Containers)
	if err != nil {
		r.t.Fatal(err)
	}
	return store
}

// stored returns the lines of a container as they are stored.
func (r *rig) stored(name string) []string {
	r.t.Helper()
	content, err := r.containers().GetBytes(r.t.Context(), name)
	if err != nil {
		r.t.Fatalf("container %s: %v", name, err)
	}
	return message.DecodeContainer(content)
}

// send publishes lines as one batch.
func (r *rig) send(endpoint string, lines ...string) {
	r.t.Helper()
	b := batch(endpoint, lines...)
	m := b.BatchMsg([]byte(strings.Join(lines, "\n")+"\n"), len(lines))
	if _, err := r.bus.JS.PublishMsg(r.t.Context(), m); err != nil {
		r.t.Fatal(err)
	}
}

// settle waits until all batches are acknowledged.
func (r *rig) settle() {
	r.t.Helper()
	eventually(r.t, func() error {
		s, err := r.bus.JS.Stream(r.t.Context(), stream.Events)
		if err != nil {
			return err
		}
		c, err := r.bus.JS.Consumer(r.t.Context(), stream.Events, stream.EventsConsumer)
		if err != nil {
			return err
		}
		if floor, last := c.CachedInfo().AckFloor.Stream, s.CachedInfo().State.LastSeq; floor < last {
			return fmt.Errorf("acknowledged up to %d of %d", floor, last)
		}
		return nil
	})
}

// raw returns all messages of a stream.
func (r *rig) raw(name string) []*jetstream.RawStreamMsg {
	r.t.Helper()
	s, err := r.bus.JS.Stream(r.t.Context(), name)
	if err != nil {
		r.t.Fatal(err)
	}
	var out []*jetstream.RawStreamMsg
	for seq := s.CachedInfo().State.FirstSeq; seq > 0 && seq <= s.CachedInfo().State.LastSeq; seq++ {
		m, err := s.GetMsg(r.t.Context(), seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue // removed
		}
		if err != nil {
			r.t.Fatal(err)
		}
		out = append(out, m)
	}
	return out
}

// alerts settles and returns all alerts.
func (r *rig) alerts() []message.Alert {
	r.t.Helper()
	r.settle()
	var out []message.Alert
	for _, m := range r.raw(stream.Alerts) {
		a, err := message.ParseAlert(m.Header, m.Data)
		if err != nil {
			r.t.Fatal(err)
		}
		out = append(out, a)
	}
	return out
}

// add posts rules.
func (x *replica) add(update bool, body string) (message.RulesChangeReply, error) {
	return bus.Call[message.RulesChangeReply](x.t.Context(), x.rig.bus, message.RulesAdd,
		message.RulesAddRequest{Body: message.Compress(nil, []byte(body)), Update: update, Actor: "tester"})
}

func (x *replica) mustAdd(update bool, body string) message.RulesChangeReply {
	x.t.Helper()
	reply, err := x.add(update, body)
	if err != nil {
		x.t.Fatal(err)
	}
	return reply
}

func (x *replica) delete(name string) (message.RulesChangeReply, error) {
	return bus.Call[message.RulesChangeReply](x.t.Context(), x.rig.bus, message.RulesDelete, message.RulesDeleteRequest{Name: name, Actor: "tester"})
}

func (x *replica) reload() message.RulesCountReply {
	x.t.Helper()
	return call[message.RulesCountReply](x.t, x.rig.bus, message.RulesReload, struct{}{})
}

// listed returns the names of the rules that a pattern finds, each followed by
// its condition's first operand where it has one.
func (x *replica) listed(pattern string) []string {
	x.t.Helper()
	var names []string
	for q := (message.RulesListRequest{Name: pattern}); ; {
		page := call[message.RulesListReply](x.t, x.rig.bus, message.RulesList, q)
		for _, raw := range page.Rules {
			names = append(names, nameOf(x.t, raw))
		}
		if page.Next == "" {
			return names
		}
		q.After = page.Next
	}
}

// call asks and fails the test on an error.
func call[A any](t *testing.T, b *bus.Bus, subject string, q any) A {
	t.Helper()
	a, err := bus.Call[A](t.Context(), b, subject, q)
	if err != nil {
		t.Fatalf("%s: %v", subject, err)
	}
	return a
}

// wantFault checks kind and text of an error.
func wantFault(t *testing.T, err error, kind fault.Kind, text string) {
	t.Helper()
	var f *fault.Error
	if !errors.As(err, &f) {
		t.Fatalf("got error %v, want %s", err, kind)
	}
	if f.Kind != kind || !strings.Contains(f.Message, text) {
		t.Errorf("got %s %q, want %s with %q", f.Kind, f.Message, kind, text)
	}
}

// value returns the sum over a metric's series that have all the labels.
func (x *replica) value(name string, labels ...string) float64 {
	x.t.Helper()
	families, err := x.metrics.Gather()
	if err != nil {
		x.t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if hasLabels(m, labels) {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return sum
}

func hasLabels(m *dto.Metric, labels []string) bool {
	for i := 0; i+1 < len(labels); i += 2 {
		found := false
		for _, l := range m.GetLabel() {
			found = found || l.GetName() == labels[i] && l.GetValue() == labels[i+1]
		}
		if !found {
			return false
		}
	}
	return true
}

// event returns an event whose Image is given.
func event4(id int, image string) string {
	return fmt.Sprintf(`{"Event":{"EventData":{"Image":%q},"System":{"Channel":"Test","Computer":"WS-01.example.com","EventID":"1","TimeCreated":{"SystemTime":"2030-05-06T07:00:00.%03dZ"}}}}`, image, id)
}

// rule returns a v2 rule that matches an Image holding word.
func rule(name, word string, criticality int, extra string) string {
	return fmt.Sprintf(`{"Name":%q,"Tags":["t"],"Meta":{"Events":{"Test":[]},"ATTACK":[{"ID":"T1059","Tactic":"Execution","Reference":"https://attack.mitre.org/techniques/T1059"}],"Criticality":%d%s,"Schema":"2.0.0"},"Matches":["$a: Image ~= '%s'"],"Condition":"$a"}`+"\n", name, criticality, extra, word)
}
