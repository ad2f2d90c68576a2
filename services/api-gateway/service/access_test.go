package gateway

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

// restricted starts a server and returns a function that connects with the
// gateway's rights alone, and a connection that may do everything.
func restricted(t *testing.T) (own func() *bus.Bus, all *bus.Bus) {
	t.Helper()
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
	p, err := access.ForService(access.Gateway)
	if err != nil {
		t.Fatal(err)
	}
	srv, err := server.NewServer(&server.Options{
		DontListen: true, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true, MaxPayload: stream.MaxMessage,
		Users: []*server.User{{Username: "all", Password: "all"}},
		Nkeys: []*server.NkeyUser{{Nkey: public, Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Allow: p.Publish}, Subscribe: &server.SubjectPermission{Allow: p.Subscribe},
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(10 * time.Second) {
		t.Fatal("nats server is not ready")
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
	return func() *bus.Bus {
		b, err := bus.Connect(bus.Options{Service: access.Gateway, Seed: seed, InProcess: srv, Log: lifecycle.Discard()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(b.Close)
		return b
	}, &bus.Bus{NC: nc, JS: js, Log: lifecycle.Discard()}
}

// The gateway needs no more than its own rights.
func TestPermissions(t *testing.T) {
	own, all := restricted(t)
	r := &rig{t: t, bus: all, connect: own}
	r.run(nil)
	e := r.endpoint()
	h, _ := pages([]string{`{"n":1}`})
	r.handle(subject.Logs(subject.PartitionOf(e.UUID), message.LogsQuery), h)
	r.handle(message.RulesCount, count(1))
	if a := r.agent(e, "POST", "/logs", strings.NewReader("{}\nbad\n")); a.code != 200 {
		t.Errorf("%d %s", a.code, a.body)
	}
	if lines, _ := r.events(e.UUID); len(lines) != 1 || len(r.messages(stream.DeadLetters)) != 1 {
		t.Errorf("%d events and %d dead letters are stored", len(lines), len(r.messages(stream.DeadLetters)))
	}
	r.rules.set(t, "changed\n", "")
	eventually(t, "the change of the rules is noticed", func() bool { return r.agent(e, "GET", "/rules", nil).body == "changed\n" })
	r.expect("GET", "/stats", "", ok(`{"endpoint-count":1,"rule-count":1}`))
	r.expect("GET", "/endpoints/"+e.UUID+"/logs", "", ok(`[{"n":1}]`))
	if got := data[message.Endpoint](r, "DELETE", "/endpoints/"+e.UUID, ""); got.UUID != e.UUID {
		t.Errorf("deleted %+v", got)
	}
	if n := len(r.messages(stream.Audit)); n != 2 || testutil.ToFloat64(r.svc.metrics.unaudit) != 0 {
		t.Errorf("%d changes are on record, want 2", n)
	}
	r.restart()
}
