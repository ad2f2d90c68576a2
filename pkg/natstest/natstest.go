package natstest

import (
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

// Server is a NATS server of one test.
type Server struct {
	// NATS is the running server.
	NATS *server.Server
	dir  string
	// synced makes the server sync before it acknowledges.
	synced bool
}

// Start starts a server that listens on no port. It stops with the test.
func Start(t testing.TB) *Server {
	t.Helper()
	return begin(t, &Server{dir: t.TempDir()})
}

// StartSynced starts a server that has a message on stable storage before it
// acknowledges it, as a manager's does. That takes its time: it is for
// measuring.
func StartSynced(t testing.TB) *Server {
	t.Helper()
	return begin(t, &Server{dir: t.TempDir(), synced: true})
}

func begin(t testing.TB, s *Server) *Server {
	t.Helper()
	s.start(t)
	t.Cleanup(func() { s.stop() })
	return s
}

func (s *Server) start(t testing.TB) {
	t.Helper()
	srv, err := server.NewServer(&server.Options{
		ServerName: "test", DontListen: true, JetStream: true, StoreDir: s.dir, NoSigs: true, NoLog: true, MaxPayload: stream.MaxMessage, SyncAlways: s.synced,
	})
	if err != nil {
		t.Fatalf("nats server: %v", err)
	}
	srv.Start()
	if !srv.ReadyForConnections(10 * time.Second) {
		t.Fatal("nats server is not ready")
	}
	s.NATS = srv
}

func (s *Server) stop() {
	s.NATS.Shutdown()
	s.NATS.WaitForShutdown()
}

// Restart stops the server and starts it again on the same store.
// Connections to it must be made anew.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	s.stop()
	s.start(t)
}

// Bus returns a connection for a service, closed with the test.
func (s *Server) Bus(t testing.TB, service string) *bus.Bus {
	t.Helper()
	b, err := bus.Connect(bus.Options{Service: service, InProcess: s.NATS, Log: lifecycle.Discard()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}
