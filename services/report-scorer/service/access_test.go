package scorer

import (
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

// restricted starts a server and returns a connection with the rights of the
// service alone, and one that may do everything.
func restricted(t *testing.T, service string) (own, all *bus.Bus) {
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
	p, err := access.ForService(service)
	if err != nil {
		t.Fatal(err)
	}
	srv, err := server.NewServer(&server.Options{
		DontListen: true, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true, MaxPayload: stream.MaxMessage,
		Users: []*server.User{{Username: "all", Password: "all"}},
		Nkeys: []*server.NkeyUser{{Nkey: public, Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Allow: p.Publish}, Subscribe: &server.SubjectPermission{Allow: p.Subscribe},
			Response: &server.ResponsePermission{MaxMsgs: 1, Expires: time.Minute},
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
	own, err = bus.Connect(bus.Options{Service: service, Seed: seed, InProcess: srv, Log: lifecycle.Discard()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(own.Close)
	nc, err := nats.Connect("", nats.InProcessServer(srv), nats.UserInfo("all", "all"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return own, &bus.Bus{NC: nc, JS: js, Log: lifecycle.Discard()}
}

// The service needs no more than its own rights, also when it reads alerts
// again.
func TestPermissions(t *testing.T) {
	own, all := restricted(t, access.Scorer)
	if err := stream.Ensure(t.Context(), all.JS, stream.Alerts, stream.Limits{}); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, bus: all}
	s, _ := w.startOn(own, t.TempDir())
	first := w.raise(alpha, criticalities, "ten")
	w.folded(w.raise(alpha, criticalities, "four"), s)
	if err := s.clears.Wait(t.Context(), w.put(alpha, first)); err != nil {
		t.Fatal(err)
	}
	if r := w.get(alpha); r == nil || r.AlertCount != 1 {
		t.Errorf("report is %s", text(t, r))
	}
	if r := w.clear(alpha); r == nil || w.get(alpha) != nil {
		t.Errorf("cleared %s", text(t, r))
	}
	if err := own.NC.LastError(); err != nil {
		t.Errorf("the server refused something: %v", err)
	}
}
