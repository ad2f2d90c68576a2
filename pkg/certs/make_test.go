package certs_test

import (
	"crypto/tls"
	"crypto/x509"
	"path/filepath"
	"testing"

	"github.com/nightjar-edr/nightjar/pkg/certs"
)

// made returns the certificate and the authority of a folder.
func made(t *testing.T, dir string) (*x509.Certificate, *x509.CertPool) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, certs.CertFile), filepath.Join(dir, certs.KeyFile))
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(read(t, filepath.Join(dir, certs.CAFile)))) {
		t.Fatal("no authority")
	}
	return leaf, pool
}

// Servers of a cluster are clients of each other; a server that has no peers
// cannot use its certificate as a client.
func TestMakeForPeers(t *testing.T) {
	dir, names := t.TempDir(), []string{"nats", "*.nats", "127.0.0.1"}
	for _, tc := range []struct{ peers, client bool }{{false, false}, {true, true}} {
		if err := certs.Make(dir, names, tc.peers); err != nil {
			t.Fatal(err)
		}
		leaf, pool := made(t, dir)
		for _, name := range []string{"nats", "nats-2.nats", "127.0.0.1"} {
			if _, err := leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: pool}); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		_, err := leaf.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		if (err == nil) != tc.client {
			t.Errorf("peers %v: as a client: %v", tc.peers, err)
		}
		before := read(t, filepath.Join(dir, certs.CertFile))
		if err := certs.Make(dir, names, tc.peers); err != nil || read(t, filepath.Join(dir, certs.CertFile)) != before {
			t.Errorf("peers %v: made anew, %v", tc.peers, err)
		}
	}
}
