package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"path/filepath"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/nightjar-edr/nightjar/pkg/certs"
)

// The certificate that ends first of those that are shown is told of, and
// nothing without TLS.
func TestExpiry(t *testing.T) {
	dir := t.TempDir()
	served, err := certs.Load("auto", dir, []string{"localhost"})
	if err != nil {
		t.Fatal(err)
	}
	other, err := tls.LoadX509KeyPair(filepath.Join(dir, certs.CAFile), filepath.Join(dir, "ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(other.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	if !ca.NotAfter.After(served.NotAfter) {
		t.Fatal("the authority ends before the certificate")
	}
	pair := served.Config.Certificates[0]
	for _, order := range [][][]byte{{pair.Certificate[0], ca.Raw}, {ca.Raw, pair.Certificate[0]}} {
		reg := prometheus.NewRegistry()
		showExpiry(reg, &tls.Config{Certificates: []tls.Certificate{{Certificate: order, PrivateKey: pair.PrivateKey}}, MinVersion: tls.VersionTLS12})
		families, err := reg.Gather()
		if err != nil || len(families) != 1 {
			t.Fatalf("%v, %v", families, err)
		}
		if got := families[0].GetMetric()[0].GetGauge().GetValue(); int64(got) != served.NotAfter.Unix() {
			t.Errorf("expires at %v, want %v", got, served.NotAfter.Unix())
		}
	}
	plain := prometheus.NewRegistry()
	showExpiry(plain, nil)
	if n, err := testutil.GatherAndCount(plain); err != nil || n != 0 {
		t.Errorf("%d values without TLS, %v", n, err)
	}
}
