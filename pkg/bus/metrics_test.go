package bus_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/certs"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
)

// The end of the certificate that NATS shows is told, and nothing where it
// shows none.
func TestCertificateExpiry(t *testing.T) {
	dir := t.TempDir()
	served, err := certs.Load("auto", dir, []string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), TLSConfig: served.Config, TLS: true, TLSTimeout: 5, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(10 * time.Second) {
		t.Fatal("nats server is not ready")
	}
	b, err := bus.Connect(bus.Options{Service: "test", URL: "tls://" + srv.Addr().String(), CAFile: filepath.Join(dir, certs.CAFile), Log: lifecycle.Discard()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	reg := prometheus.NewRegistry()
	reg.MustRegister(bus.CertificateExpiry(b))
	want := fmt.Sprintf("# HELP nightjar_nats_certificate_expiry_timestamp_seconds When the first certificate of the chain that NATS shows expires, in Unix time. "+
		"No value without a connection with TLS.\n# TYPE nightjar_nats_certificate_expiry_timestamp_seconds gauge\nnightjar_nats_certificate_expiry_timestamp_seconds %d\n", served.NotAfter.Unix())
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	plain := prometheus.NewRegistry()
	plain.MustRegister(bus.CertificateExpiry(natstest.Start(t).Bus(t, "test")))
	if n, err := testutil.GatherAndCount(plain); err != nil || n != 0 {
		t.Errorf("%d values without TLS, %v", n, err)
	}
}
