package gateway

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
	"github.com/nightjar-edr/nightjar/pkg/testlog"
)

// holding is a log handler in which a view of endpoints stands still at the
// first record that it cannot read, until it is released.
type holding struct {
	slog.Handler
	held, released chan struct{}
	release        func()
}

func newHolding() *holding {
	h := &holding{Handler: slog.DiscardHandler, held: make(chan struct{}), released: make(chan struct{})}
	h.release = sync.OnceFunc(func() { close(h.released) })
	return h
}

func (*holding) Enabled(context.Context, slog.Level) bool { return true }

func (h *holding) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, "record cannot be read") {
		close(h.held)
		<-h.released
	}
	return nil
}

// beside starts one more gateway beside the rig's.
func (r *rig) beside(log slog.Handler) *rig {
	r.t.Helper()
	second := *r
	second.cfg.DataDir = r.t.TempDir()
	if log != nil {
		second.cfg.Log = slog.New(log)
	}
	second.start()
	return &second
}

// hold holds the view of the gateway whose log it is.
func (r *rig) hold(h *holding) {
	r.t.Helper()
	r.t.Cleanup(h.release) // before the gateway is stopped
	kv, err := r.bus.JS.KeyValue(r.t.Context(), stream.Endpoints)
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := kv.PutString(r.t.Context(), someUUID, "no record"); err != nil {
		r.t.Fatal(err)
	}
	<-h.held
}

// code is what a gateway answers an agent.
func (r *rig) code(e message.Endpoint) int {
	r.t.Helper()
	return r.agent(e, http.MethodGet, "/key", nil).code
}

func (r *rig) known(e message.Endpoint) {
	r.t.Helper()
	eventually(r.t, "the endpoint is known", func() bool { return r.code(e) == http.StatusOK })
}

// heard waits until a gateway has heard of another one twice more.
func (r *rig) heard(name string) {
	r.t.Helper()
	p := r.svc.peers
	at := func() time.Time {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.by[name].heard
	}
	for range 2 {
		last := at()
		eventually(r.t, "the other gateway is heard of", func() bool { return at().After(last) })
	}
}

// settle lets a gateway have listened for long.
func (r *rig) settle() {
	p := r.svc.peers
	p.mu.Lock()
	defer p.mu.Unlock()
	p.since = p.since.Add(-peersSettle)
}

// A deletion, and the release of a hostname, are answered when every gateway
// acts by them: here one whose view is held up for a while.
func TestChangesWaitForEveryGateway(t *testing.T) {
	for name, c := range map[string]struct {
		path   string
		before func(first, second *rig)
		done   func(cred credential, known bool) bool
	}{
		"deletion": {"", func(first, second *rig) {
			first.heard(second.svc.peers.name)
			first.settle()
		}, func(_ credential, known bool) bool { return !known }},
		"release of the hostname": {"/hostname", func(first, second *rig) {
			first.heard(second.svc.peers.name)
			first.settle()
		}, func(cred credential, known bool) bool { return known && cred.Hostname == "" }},
		"by a gateway that has just been started": {"", func(first, _ *rig) { first.restart() }, func(_ credential, known bool) bool { return !known }},
	} {
		t.Run(name, func(t *testing.T) {
			first := newRig(t, nil)
			h := newHolding()
			second := first.beside(h)
			e := first.endpoint()
			first.known(e) // and bound
			second.known(e)
			acts := func(r *rig) bool { return c.done(r.svc.credentials.get(e.UUID)) }
			eventually(t, "the endpoint is bound everywhere", func() bool {
				cred, _ := second.svc.credentials.get(e.UUID)
				return cred.Hostname != ""
			})
			second.hold(h)
			c.before(first, second)
			answered := make(chan struct{})
			go func() {
				defer close(answered)
				data[message.Endpoint](first, http.MethodDelete, "/endpoints/"+e.UUID+c.path, "")
			}()
			eventually(t, "the first gateway acts by the change", func() bool { return acts(first) })
			first.heard(second.svc.peers.name)
			if acts(second) {
				t.Fatal("the second gateway is not held up")
			}
			select {
			case <-answered:
				t.Error("the change is answered while a gateway does not act by it")
			default:
			}
			h.release()
			<-answered
			if !acts(second) {
				t.Error("the change is answered, and the second gateway does not act by it")
			}
		})
	}
}

// A gateway that does not learn of a deletion is named in the log, and answers
// no agent any more when the deletion is answered. When it gets on it does.
func TestGatewayThatIsBehindRefusesAgents(t *testing.T) {
	log := &testlog.Log{}
	first := newRig(t, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(log, nil)) })
	h := newHolding()
	second := first.beside(h)
	e, kept := first.endpoint(), first.endpoint()
	second.known(e)
	second.known(kept)
	second.hold(h)
	data[message.Endpoint](first, http.MethodDelete, "/endpoints/"+e.UUID, "")
	for _, e := range []message.Endpoint{e, kept} {
		if a := second.agent(e, http.MethodGet, "/key", nil); a.code != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" {
			t.Errorf("answered with %d %s", a.code, a.body)
		}
	}
	if second.svc.Ready() == nil {
		t.Error("the gateway says it is ready")
	}
	if text := log.String(); !strings.Contains(text, second.svc.peers.name) {
		t.Errorf("the log does not name %s: %s", second.svc.peers.name, text)
	}
	if code := first.code(kept); code != http.StatusOK {
		t.Errorf("the first gateway answers %d", code)
	}
	h.release()
	eventually(t, "the gateway is ready", func() bool { return second.svc.Ready() == nil })
	if code := second.code(e); code != http.StatusForbidden {
		t.Errorf("a deleted endpoint is answered with %d", code)
	}
	if code := second.code(kept); code != http.StatusOK {
		t.Errorf("an endpoint is answered with %d", code)
	}
}

// A gateway that is cut off from NATS answers no agent once its lease is over.
func TestGatewayWithoutNATSRefusesAgents(t *testing.T) {
	log := &testlog.Log{}
	r := newRig(t, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(log, nil)) })
	e := r.endpoint()
	r.known(e)
	r.nats.NATS.Shutdown()
	r.nats.NATS.WaitForShutdown()
	eventually(t, "agents are refused", func() bool { return r.code(e) == http.StatusServiceUnavailable })
	eventually(t, "the log says so", func() bool { return strings.Contains(log.String(), "agents are refused") })
}

// A gateway that is alone acts by a change when it is answered, as one with
// peers does, and tells nobody.
func TestGatewayThatIsAlone(t *testing.T) {
	h := newHolding()
	said := make(chan *nats.Msg, 1)
	r := &rig{t: t, nats: natstest.Start(t)}
	r.bus = r.nats.Bus(t, "test")
	sub, err := r.bus.NC.ChanSubscribe(message.GatewayAlive, said)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	r.connect = func() *bus.Bus { return r.nats.Bus(t, access.Gateway) }
	r.run(func(c *Config) { c.Alone, c.Log = true, slog.New(h) })
	e := r.endpoint()
	r.known(e)
	r.hold(h)
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		data[message.Endpoint](r, http.MethodDelete, "/endpoints/"+e.UUID, "")
	}()
	select {
	case <-answered:
		t.Error("the deletion is answered, and the gateway does not act by it")
	case <-time.After(time.Second):
	}
	h.release()
	<-answered
	if code := r.code(e); code != http.StatusForbidden {
		t.Errorf("a deleted endpoint is answered with %d", code)
	}
	if err := r.bus.NC.Flush(); err != nil {
		t.Fatal(err)
	}
	if len(said) > 0 {
		t.Errorf("it said %s", (<-said).Data)
	}
}

// What others say is kept for as long as it matters, and a message that is
// none changes nothing.
func TestPeersHear(t *testing.T) {
	r := newRig(t, nil)
	p := r.svc.peers
	say := func(text string) { p.hear(&nats.Msg{Subject: message.GatewayAlive, Data: []byte(text)}) }
	behind := func(want string) {
		t.Helper()
		if names, _, _ := p.behind(5, 0); strings.Join(names, " ") != want {
			t.Errorf("behind is %q, want %q", names, want)
		}
	}
	behind("")
	say(`{"gateway":"b","endpoints":4}`)
	say(`{"gateway":"a"}`)
	say(`{"gateway":"c","endpoints":5}`)
	say(`{"gateway":"` + p.name + `"}`)
	say(`{"endpoints":1}`)
	say(`nothing`)
	behind("a b")
	say(`{"gateway":"b","endpoints":6}`)
	behind("a")
	say(`{"gateway":"a","leaving":true}`)
	behind("")
	say(`{"gateway":"d"}`)
	p.mu.Lock()
	old := p.by["d"]
	old.heard = old.heard.Add(-2 * peersMemory)
	p.by["d"] = old
	p.mu.Unlock()
	behind("")
}

// Whoever leaves is waited for no longer.
func TestLeavingIsSaid(t *testing.T) {
	first := newRig(t, nil)
	second := first.beside(nil)
	knows := func() int {
		first.svc.peers.mu.Lock()
		defer first.svc.peers.mu.Unlock()
		return len(first.svc.peers.by)
	}
	eventually(t, "the gateways know each other", func() bool { return knows() == 1 })
	second.stop()
	eventually(t, "the one that left is forgotten", func() bool { return knows() == 0 })
}
