package ingest

import (
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

// TestAccess runs the service with the rights of its own user.
func TestAccess(t *testing.T) {
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
	p, err := access.ForService(access.Ingest)
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
	nc, err := nats.Connect("", nats.InProcessServer(srv), nats.UserInfo("all", "all"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, dir: t.TempDir(), bus: &bus.Bus{NC: nc, JS: js, Log: lifecycle.Discard()}}
	r.own = func() *bus.Bus {
		b, err := bus.Connect(bus.Options{Service: access.Ingest, Seed: seed, InProcess: srv, Log: lifecycle.Discard()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(b.Close)
		return b
	}
	r.ensure()
	r.start()
	r.send(one, noon, line(noon, 1))
	want := []string{r.mark(one, line(noon, 1), noon, 5)}
	r.settle()
	equal(t, "events", r.ask(message.LogsRequest{Endpoint: one}), want)
	r.restart(false)
	r.send(one, noon, line(noon.Add(1), 2))
	r.settle()
	equal(t, "after a restart", r.ask(message.LogsRequest{Endpoint: one}), append(want, line(noon.Add(1), 2)))
	equal(t, "alerts", r.ask(message.LogsRequest{Endpoint: one, Alerts: true}), want)
	r.put(artifactOf(one, "file").Object(), "content")
	if list, _ := r.listed(one); names(list) != "file" {
		t.Errorf("artifacts %q", names(list))
	}
	if _, err := r.svc.artifacts.tidy(t.Context()); err != nil {
		t.Errorf("tidy: %v", err)
	}
}
