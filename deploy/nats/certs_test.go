package main

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gopkg.in/yaml.v2"

	"github.com/nightjar-edr/nightjar/pkg/certs"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

// verify checks that a folder's certificate is good for a name, as a server or
// as a client.
func verify(t *testing.T, dir, name string, use x509.ExtKeyUsage) error {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, certs.CertFile), filepath.Join(dir, certs.KeyFile))
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(dir, certs.CAFile))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	_, err = leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: pool, KeyUsages: []x509.ExtKeyUsage{use}})
	return err
}

// The certificates are good for every name that a pod, a container or an
// operator uses, and those of the gateways do not open the cluster of NATS.
func TestCertificates(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	must(t, "all", "--dir", dir, "--namespace", "edr", "--host", "edr.example.org, 192.0.2.7")
	nats, api := filepath.Join(dir, natsCerts), filepath.Join(dir, apiCerts)
	for _, tc := range []struct {
		dir  string
		name string
		use  x509.ExtKeyUsage
		good bool
	}{
		{nats, "nats", x509.ExtKeyUsageServerAuth, true},
		{nats, "nats-2.nats", x509.ExtKeyUsageServerAuth, true},
		{nats, "nats-0.nats", x509.ExtKeyUsageClientAuth, true},
		{nats, "nats.edr.svc.cluster.local", x509.ExtKeyUsageServerAuth, true},
		{nats, "edr.example.org", x509.ExtKeyUsageServerAuth, false},
		{api, "edr.example.org", x509.ExtKeyUsageServerAuth, true},
		{api, "192.0.2.7", x509.ExtKeyUsageServerAuth, true},
		{api, "nightjar-agent.edr.svc", x509.ExtKeyUsageServerAuth, true},
		{api, "nightjar-admin", x509.ExtKeyUsageServerAuth, true},
		{api, "localhost", x509.ExtKeyUsageServerAuth, true},
		{api, "localhost", x509.ExtKeyUsageClientAuth, false},
		{api, "nats", x509.ExtKeyUsageServerAuth, false},
	} {
		if err := verify(t, tc.dir, tc.name, tc.use); (err == nil) != tc.good {
			t.Errorf("%s for %s, use %d: %v", tc.dir, tc.name, tc.use, err)
		}
	}
	for _, file := range []string{keysFile, serverFile, clusterFile, "admin-key"} {
		if _, err := os.Stat(filepath.Join(dir, file)); err != nil {
			t.Error(err)
		}
	}
	before, again := files(t, nats), ""
	must(t, "certs", "--dir", dir, "--namespace", "edr", "--host", "edr.example.org,192.0.2.7")
	for name, text := range files(t, nats) {
		if text != before[name] {
			again += name
		}
	}
	if again != "" {
		t.Errorf("made anew: %s", again)
	}
}

// Certificates become secrets as cert-manager makes them, and never with the
// key of an authority.
func TestCertificateSecrets(t *testing.T) {
	dir := t.TempDir()
	must(t, "all", "--dir", dir)
	found := 0
	for doc := range strings.SplitSeq("\n"+must(t, "secrets", "--dir", dir), "\n---\n") {
		var m manifest
		if err := yaml.UnmarshalStrict([]byte(doc+"\n"), &m); err != nil {
			t.Fatal(err)
		}
		for _, folder := range []string{natsCerts, apiCerts} {
			key, err := os.ReadFile(filepath.Join(dir, folder, "ca.key"))
			if err != nil || strings.Contains(doc, strings.Split(string(key), "\n")[1]) {
				t.Errorf("%s holds the key of an authority: %v", m.Metadata.Name, err)
			}
		}
		folder, isCert := map[string]string{"nightjar-nats-tls": natsCerts, "nightjar-api-tls": apiCerts}[m.Metadata.Name]
		if !isCert {
			continue
		}
		found++
		if m.Type != "kubernetes.io/tls" || len(m.StringData) != 3 {
			t.Errorf("%s has type %s and %d members", m.Metadata.Name, m.Type, len(m.StringData))
		}
		for member, file := range map[string]string{"ca.crt": certs.CAFile, "tls.crt": certs.CertFile, "tls.key": certs.KeyFile} {
			if text, err := os.ReadFile(filepath.Join(dir, folder, file)); err != nil || m.StringData[member] != string(text) {
				t.Errorf("%s: %s is not %s, %v", m.Metadata.Name, member, file, err)
			}
		}
	}
	if found != 2 {
		t.Errorf("%d secrets with certificates", found)
	}
	if err := os.Remove(filepath.Join(dir, apiCerts, certs.KeyFile)); err != nil {
		t.Fatal(err)
	}
	var out, errs strings.Builder
	if code := run([]string{"secrets", "--dir", dir}, &out, &errs); code != lifecycle.ExitFailed || out.Len() > 0 || !strings.Contains(errs.String(), apiCerts) {
		t.Errorf("half a certificate: %d, %s", code, errs.String())
	}
}
