package ruleengine

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
)

// wantOnce checks that each of n events of endpointA raised exactly one alert.
func wantOnce(t *testing.T, alerts []message.Alert, n int) {
	t.Helper()
	seen := map[string]int{}
	for _, a := range alerts {
		if a.Endpoint == endpointA {
			seen[a.Hash.String()]++
		}
	}
	if len(seen) != n {
		t.Errorf("%d events raised an alert, want %d", len(seen), n)
	}
	for hash, times := range seen {
		if times != 1 {
			t.Errorf("event %s raised %d alerts", hash, times)
		}
	}
}

func TestTwoReplicasRaiseOnce(t *testing.T) {
	r := newRig(t)
	x, y := r.start(r.config()), r.start(r.config())
	x.mustAdd(false, rule("evil", "evil", 5, ""))
	const events = 40
	for round := range 3 {
		for i := range events {
			// The same events in other batches.
			r.send(endpointA, event4(i, "evil.exe"), event4(1000*(round+1)+i, "harmless.exe"), event4((i+round)%events, "evil.exe"))
		}
	}
	wantOnce(t, r.alerts(), events)
	eventually(t, func() error {
		const name = "nightjar_rule_engine_batches_total"
		if a, b := x.value(name), y.value(name); a+b != 3*events || a == 0 || b == 0 {
			return fmt.Errorf("%v and %v batches", a, b)
		}
		return nil
	})
}

// TestKilledBetweenPublishAndAck plays a replica that is killed when its alerts
// are stored and its batch is not acknowledged.
func TestKilledBetweenPublishAndAck(t *testing.T) {
	r := newRig(t)
	x := r.start(r.config())
	x.mustAdd(false, rule("evil", "evil", 5, ""))
	x.stop()

	r.send(endpointA, event4(1, "evil.exe"), event4(2, "evil.exe"))
	dying, err := New(r.config())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := dying.db.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := dying.rules.apply(x.s.rules.current.Load().revision, x.s.rules.current.Load().record); err != nil {
		t.Fatal(err)
	}
	c, err := r.bus.JS.Consumer(t.Context(), stream.Events, stream.EventsConsumer)
	if err != nil {
		t.Fatal(err)
	}
	m, err := c.Next()
	if err != nil {
		t.Fatal(err)
	}
	meta, err := m.Metadata()
	if err != nil {
		t.Fatal(err)
	}
	wk := newWorker(dying.walk)
	out, err := wk.attempt(m, meta)
	if err != nil {
		t.Fatal(err)
	}
	futures, err := wk.publish(t.Context(), out)
	if err != nil {
		t.Fatal(err)
	}
	if err := dying.walk.settle(out, futures); err != nil {
		t.Fatal(err)
	}
	if len(futures) != 2 {
		t.Fatalf("%d alerts", len(futures))
	}
	if err := m.Nak(); err != nil { // what the end of its time does
		t.Fatal(err)
	}
	forgetMessageIDs(t, r)

	y := r.start(r.config())
	wantOnce(t, r.alerts(), 2)
	eventually(t, func() error {
		if got := y.value("nightjar_rule_engine_repeated_total"); got != 2 {
			return fmt.Errorf("%v repetitions", got)
		}
		return nil
	})
}

// TestConnectionDies cuts a replica off in the middle of its work.
func TestConnectionDies(t *testing.T) {
	r := newRig(t)
	cfg := func() Config {
		c := r.config()
		c.ackWait = time.Second // what was in its hands comes back after that
		return c
	}
	x := r.start(cfg())
	x.mustAdd(false, rule("evil", "evil", 5, ""))
	const batches = 200
	for i := range batches {
		r.send(endpointA, event4(i, "evil.exe"), event4(1000+i, "harmless.exe"))
		if i == batches/2 {
			x.bus.NC.Close()
		}
	}
	eventually(t, func() error {
		if x.s.Ready() == nil {
			return fmt.Errorf("ready without a connection")
		}
		return nil
	})
	x.stop()
	r.start(cfg())
	wantOnce(t, r.alerts(), batches)
}

func TestAlertsRefused(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.MaxAlertBytes = 3000
	x := r.start(cfg)
	x.mustAdd(false, rule("evil", "evil", 5, ""))
	for i := range 6 {
		r.send(endpointA, event4(i, "evil.exe"))
	}
	eventually(t, func() error {
		if err := x.s.Ready(); err == nil || !strings.Contains(err.Error(), "alerts are refused") {
			return fmt.Errorf("ready: %v", err)
		}
		return nil
	})
	if x.value("nightjar_rule_engine_refused_alerts_total") == 0 {
		t.Error("refused alerts are not counted")
	}
	s, err := r.bus.JS.Stream(t.Context(), stream.Alerts)
	if err != nil {
		t.Fatal(err)
	}
	wider := s.CachedInfo().Config
	wider.MaxBytes = -1
	if _, err := r.bus.JS.UpdateStream(t.Context(), wider); err != nil {
		t.Fatal(err)
	}
	wantOnce(t, r.alerts(), 6)
	eventually(t, x.s.Ready)
}

func TestPoison(t *testing.T) {
	publish := func(t *testing.T, r *rig, data string) uint64 {
		t.Helper()
		ack, err := r.bus.JS.Publish(t.Context(), subject.Events(endpointA), []byte(data))
		if err != nil {
			t.Fatal(err)
		}
		return ack.Sequence
	}
	check := func(t *testing.T, r *rig, x *replica, detail string) {
		t.Helper()
		r.settle()
		letters := r.raw(stream.DeadLetters)
		if len(letters) != 1 {
			t.Fatalf("%d dead letters", len(letters))
		}
		l := letters[0]
		if l.Subject != subject.DeadLetter(message.ReasonPoison, endpointA) || !strings.Contains(l.Header.Get("Nightjar-Detail"), detail) {
			t.Errorf("dead letter on %s: %s", l.Subject, l.Header.Get("Nightjar-Detail"))
		}
		if got := x.value("nightjar_dead_letters_total", "reason", message.ReasonPoison, "service", access.Rules); got != 1 {
			t.Errorf("%v dead letters counted", got)
		}
	}
	t.Run("not a batch", func(t *testing.T) {
		r := newRig(t)
		x := r.start(r.config())
		publish(t, r, "nonsense")
		check(t, r, x, "unknown format")
	})
	t.Run("panics", func(t *testing.T) {
		r := newRig(t)
		x := r.start(r.config())
		// A rule set without a compiled set cannot be worked with.
		broken := *x.s.rules.current.Load()
		broken.set = nil
		good := x.s.rules.current.Swap(&broken)
		r.send(endpointA, event4(1, "x"))
		r.settle()
		x.s.rules.current.Store(good)
		check(t, r, x, "5 attempts")
		if got := x.value("nightjar_rule_engine_errors_total", "kind", "panic"); got != maxAttempts {
			t.Errorf("%v panics", got)
		}
	})
	t.Run("killed the process", func(t *testing.T) {
		r := newRig(t)
		cfg := r.config()
		x := r.start(cfg)
		x.stop()
		seq := publish(t, r, "nonsense")
		c, err := r.bus.JS.Consumer(t.Context(), stream.Events, stream.EventsConsumer)
		if err != nil {
			t.Fatal(err)
		}
		m, err := c.Next()
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Nak(); err != nil {
			t.Fatal(err)
		}
		cfg.Bus, cfg.Metrics = r.srv.Bus(t, access.Rules), prometheus.NewRegistry()
		s, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.setAttempts(seq, maxAttempts); err != nil {
			t.Fatal(err)
		}
		if err := s.db.Close(); err != nil {
			t.Fatal(err)
		}
		cfg.Metrics = prometheus.NewRegistry()
		y := r.start(cfg)
		check(t, r, y, "5 attempts")
	})
	t.Run("line that is no event", func(t *testing.T) {
		r := newRig(t)
		x := r.start(r.config())
		x.mustAdd(false, rule("evil", "evil", 5, ""))
		r.send(endpointA, `{"a":`, event4(1, "evil.exe"), `[]`)
		wantOnce(t, r.alerts(), 1)
		var reasons []string
		for _, l := range r.raw(stream.DeadLetters) {
			reasons = append(reasons, l.Header.Get(message.HeaderReason)+" "+string(l.Data))
		}
		if got := strings.Join(reasons, ", "); got != `not-json {"a":, not-object []` {
			t.Errorf("dead letters: %s", got)
		}
	})
}

// TestLargestEvent sends an event of the largest size whose every byte counts.
func TestLargestEvent(t *testing.T) {
	r := newRig(t)
	x := r.start(r.config())
	x.mustAdd(false, rule("evil", "evil", 5, ""))
	random := make([]byte, message.MaxLine-len(event4(1, "evil.exe"))-len(`"Pad":"",`))
	seed := uint64(88172645463325252)
	for i := range random {
		seed ^= seed << 13
		seed ^= seed >> 7
		seed ^= seed << 17
		random[i] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-"[seed%64]
	}
	line := strings.Replace(event4(1, "evil.exe"), `"EventData":{`, `"EventData":{"Pad":"`+string(random)+`",`, 1)
	r.send(endpointA, line)
	r.send(endpointA, event4(2, "evil.exe"))
	wantOnce(t, r.alerts(), 2)
	// The view reads it as well, and goes on behind it.
	eventually(t, func() error {
		if p := x.s.raisedFold.Position(); p != 2 {
			return fmt.Errorf("view at %d", p)
		}
		return nil
	})
}

// TestPermissions runs the service with nothing but its own rights.
func TestPermissions(t *testing.T) {
	kp, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, err := kp.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := kp.Seed()
	if err != nil {
		t.Fatal(err)
	}
	p, err := access.ForService(access.Rules)
	if err != nil {
		t.Fatal(err)
	}
	perms := &server.Permissions{
		Publish: &server.SubjectPermission{Allow: p.Publish}, Subscribe: &server.SubjectPermission{Allow: p.Subscribe},
		Response: &server.ResponsePermission{MaxMsgs: 1, Expires: time.Minute},
	}
	srv, err := server.NewServer(&server.Options{
		DontListen: true, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true, MaxPayload: stream.MaxMessage,
		Nkeys: []*server.NkeyUser{{Nkey: public, Permissions: perms}}, Users: []*server.User{{Username: "all", Password: "all"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(10 * time.Second) {
		t.Fatal("server not ready")
	}
	nc, err := nats.Connect("", nats.InProcessServer(srv), nats.UserInfo("all", "all"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, bus: &bus.Bus{NC: nc, JS: js, Log: lifecycle.Discard()}}
	natstest.Removed(t, r.bus)
	for _, name := range []string{stream.Events, stream.DeadLetters} {
		if err := stream.Ensure(t.Context(), js, name, stream.Limits{}); err != nil {
			t.Fatal(err)
		}
	}
	own, err := bus.Connect(bus.Options{Service: access.Rules, Seed: seed, InProcess: srv, Log: lifecycle.Discard()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(own.Close)
	cfg := Config{
		Env:   lifecycle.Env{Bus: own, Log: lifecycle.Discard(), Metrics: prometheus.NewRegistry(), DataDir: t.TempDir(), Replicas: 1},
		SIEMs: []string{"siem"}, RulesDir: writeFolder(t, map[string]string{"a.gen": rule("evil", "evil", 5, "")}),
		ContainersDir: writeFolder(t, map[string]string{"list.txt": "a\nb\n"}), RetentionAlerts: DefaultRetentionAlerts, ackEvery: 20 * time.Millisecond,
	}
	x := r.start(cfg)
	x.mustAdd(false, rule("other", "other", 2, ""))
	x.reload()
	r.send(endpointA, event4(1, "evil.exe"), event4(2, "other.exe"), `{"bad`)
	if got := r.alerts(); len(got) != 2 {
		t.Errorf("%d alerts", len(got))
	}
	if got := r.raw(stream.DeadLetters); len(got) != 1 {
		t.Errorf("%d dead letters", len(got))
	}
	if err := own.NC.LastError(); err != nil {
		t.Errorf("the server refused something: %v", err)
	}
}
