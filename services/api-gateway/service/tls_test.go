package gateway

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
)

// certificate writes a certificate for 127.0.0.1 and its key.
func certificate(t *testing.T) (cert, key string, pool *x509.CertPool) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AddCert(parsed)
	return cert, key, pool
}

func TestTLS(t *testing.T) {
	cert, key, pool := certificate(t)
	conf, err := loadTLS(cert + "," + key)
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, func(c *Config) { c.TLS = conf })
	h, _ := pages([]string{`{"n":1}`, strings.Repeat(" ", 100<<10)}, nil)
	for p := range subject.Partitions {
		r.handle(subject.Logs(p, message.LogsQuery), h)
	}
	for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(proto, func(t *testing.T) {
			transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: proto == "HTTP/2.0"}
			t.Cleanup(transport.CloseIdleConnections)
			saved := client.Transport
			client.Transport = transport
			t.Cleanup(func() { client.Transport = saved })
			do := func(method, addr, path, body string, header map[string]string) (*http.Response, string, error) {
				req, err := http.NewRequestWithContext(t.Context(), method, "https://"+addr+path, strings.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				for k, v := range header {
					req.Header.Set(k, v)
				}
				resp, err := client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				if resp.Proto != proto {
					t.Errorf("protocol %s", resp.Proto)
				}
				text, err := io.ReadAll(resp.Body)
				return resp, string(text), err
			}
			admin := map[string]string{"X-Api-Key": adminKey}
			_, text, err := do("PUT", r.svc.AdminAddr(), "/endpoints", "", admin)
			if err != nil || !strings.Contains(text, `"message":"OK"`) {
				t.Fatalf("%s, %v", text, err)
			}
			uuid, secret := between(text, `"uuid":"`), between(text, `"key":"`)
			resp, text, err := do("POST", r.svc.AgentAddr(), "/logs", "{}\n", map[string]string{"UUID": uuid, "Api-Key": secret, "Hostname": "H"})
			if err != nil || resp.StatusCode != 200 {
				t.Errorf("%d %s, %v", resp.StatusCode, text, err)
			}
			if _, text, err = do("GET", r.svc.AdminAddr(), "/endpoints/"+uuid+"/logs", "", admin); err == nil {
				t.Errorf("an answer that is broken off ends without an error: %.100s", text)
			}
		})
	}
}

// between returns what follows start up to the next quotation mark.
func between(text, start string) string {
	_, rest, _ := strings.Cut(text, start)
	value, _, _ := strings.Cut(rest, `"`)
	return value
}

func TestLoadTLS(t *testing.T) {
	if conf, err := loadTLS("off"); conf != nil || err != nil {
		t.Errorf("off: %v, %v", conf, err)
	}
	for _, bad := range []string{"", "on", "cert.pem", "missing.pem,missing.key"} {
		if _, err := loadTLS(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestUnusableFlags(t *testing.T) {
	natstest.UnusableFlags(t, Flags, []string{"--tls", "on"}, []string{"--tls", "missing.pem,missing.key"}, []string{"--admin-addr", "8001"},
		[]string{"--agent-addr", "127.0.0.1:http"}, []string{"--max-events", "all"}, []string{"--retention-audit", "soon"})
}
