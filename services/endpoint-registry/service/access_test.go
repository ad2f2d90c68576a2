package registry_test

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

// The service needs no more than its own rights.
func TestPermissions(t *testing.T) {
	own, all := restricted(t, access.Registry)
	startOn(t, own, t.TempDir())
	c := client{t: t, b: all}
	endpoints := populate(c)
	must[message.RevisionReply](c, message.RegistryImport, message.ImportRequest{Endpoints: []message.EndpointRecord{
		{UUID: "00000000-0000-0000-0000-000000000001", Key: "k"},
	}})
	must[message.EndpointReply](c, message.RegistryRelease, message.EndpointRequest{UUID: endpoints[0].UUID})
	if err := own.NC.LastError(); err != nil {
		t.Errorf("the server refused something: %v", err)
	}
}
