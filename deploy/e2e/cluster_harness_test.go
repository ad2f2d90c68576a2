package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/tracing/tracetest"
)

// programs builds what runs apart, once: nats-server, the command that
// prepares it, and the services. It returns the folder.
var programs = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(filepath.Dir(binary), "apart")
	if err := os.Mkdir(dir, 0o750); err != nil {
		return "", err
	}
	ours := []string{module + "deploy/nats"}
	for _, name := range append(slices.Clone(access.Services), access.Canary) {
		ours = append(ours, module+"services/"+name)
	}
	for _, build := range [][]string{append([]string{"build", "-ldflags=-w", "-o", dir}, ours...),
		{"build", "-ldflags=-w", "-o", filepath.Join(dir, "nats-server"), "github.com/nats-io/nats-server/v2"}} {
		if out, err := exec.Command("go", build...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("go %s: %w\n%s", strings.Join(build, " "), err, out)
		}
	}
	return dir, nil
})

// cluster is Nightjar in many processes: NATS servers with the configuration
// that is shipped, and services that each have a key of their own.
type cluster struct {
	t        *testing.T
	bin, dir string
	nats     []*natsServer
	links    []serverLink
	services []*service
	// traces is where services added from then on send their traces, nil for
	// nowhere.
	traces *tracetest.Collector
}

// natsServer is a process of nats-server.
type natsServer struct {
	*process
	addr, monitor string
}

// service is a process of a service.
type service struct {
	*process
	kind, ops string
	// door is how clients reach a gateway, nil for other services.
	door *proc
}

// startNATS starts servers, more than one as a JetStream cluster, and waits
// until they can store.
func startNATS(t *testing.T, servers int) *cluster {
	t.Helper()
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, bin: bin, dir: t.TempDir()}
	if out, err := exec.Command(filepath.Join(bin, "nats"), "keys", "--dir", c.conf("")).CombinedOutput(); err != nil {
		t.Fatalf("nats keys: %v\n%s", err, out)
	}
	config, args := "nats-server.conf", []string(nil)
	if servers > 1 {
		// Servers find each other by their routes alone, which can be cut.
		config, args = "nats-cluster.conf", []string{"--cluster_advertise", "127.0.0.1:1"}
	}
	for _, name := range []string{"nats-server.conf", "nats-cluster.conf"} {
		text, err := os.ReadFile(filepath.Join(root, "deploy", "nats", name))
		if err != nil {
			t.Fatal(err)
		}
		write(t, c.conf(name), string(text))
	}
	if err := writeCertificates(c.conf("ca.pem"), c.conf("cert.pem"), c.conf("key.pem")); err != nil {
		t.Fatal(err)
	}
	var peers []string
	for range servers {
		peers = append(peers, freeAddr(t))
	}
	for i, peer := range peers {
		routes := c.routes(i, peers)
		s := &natsServer{addr: freeAddr(t), monitor: freeAddr(t)}
		name := "nats-" + strconv.Itoa(i)
		s.process = newProcess(t, name, filepath.Join(bin, "nats-server"),
			append(slices.Clone(args), "--config", c.conf(config), "--http_port", s.monitor[strings.LastIndexByte(s.monitor, ':')+1:]),
			[]string{"NATS_NAME=" + name, "NATS_LISTEN=" + s.addr, "NATS_STORE=" + c.store(i), "NATS_MAX_STORE=8GB",
				"NATS_CERT=" + c.conf("cert.pem"), "NATS_KEY=" + c.conf("key.pem"), "NATS_CA=" + c.conf("ca.pem"),
				"NATS_CLUSTER=" + peer, "NATS_ROUTES=" + routes})
		s.run()
		c.nats = append(c.nats, s)
	}
	for _, s := range c.nats {
		eventually(t, s.name+" ready", s.healthy)
	}
	return c
}

// routes returns where server n finds the others: behind links of its own, which
// it shares with none of them.
func (c *cluster) routes(n int, peers []string) string {
	var list []string
	for i, addr := range peers {
		if i != n {
			l, here := newLink(c.t, addr)
			c.links = append(c.links, serverLink{n, i, l})
			addr = here
		}
		list = append(list, "nats-route://"+addr)
	}
	return "[" + strings.Join(list, ", ") + "]"
}

// serverLink is the link from one server to another.
type serverLink struct {
	from, to int
	*link
}

// store is the folder of a NATS server.
func (c *cluster) store(n int) string { return filepath.Join(c.dir, "nats-"+strconv.Itoa(n)) }

// conf returns a file of the folder that every process reads.
func (c *cluster) conf(name string) string { return filepath.Join(c.dir, "conf", name) }

// healthy returns nil when the server has all its streams and they are
// current.
func (s *natsServer) healthy() error {
	if err := s.alive(); err != nil {
		return err
	}
	return answersOK("http://" + s.monitor + "/healthz")
}

// urls are the addresses of all NATS servers.
func (c *cluster) urls() string {
	var list []string
	for _, s := range c.nats {
		list = append(list, "nats://"+s.addr)
	}
	return strings.Join(list, ",")
}

// add starts a process of a service, with a store and ports of its own, which
// it keeps when it is started again.
func (c *cluster) add(kind string, args ...string) *service {
	c.t.Helper()
	name := fmt.Sprintf("%s-%d", kind, len(c.services))
	s := &service{kind: kind, ops: "http://" + freeAddr(c.t)}
	args = append([]string{"--nats-url", c.urls(), "--nats-nkey", c.conf(kind + ".nk"), "--nats-ca", c.conf("ca.pem"),
		"--data-dir", filepath.Join(c.dir, name), "--ops-addr", strings.TrimPrefix(s.ops, "http://"),
		"--replicas", strconv.Itoa(len(c.nats)), "--log-format", "text"}, args...)
	if c.traces != nil {
		args = append(args, "--trace-endpoint", c.traces.URL)
	}
	if kind == access.Gateway {
		admin, agents := freeAddr(c.t), freeAddr(c.t)
		args = append(args, "--admin-addr", admin, "--agent-addr", agents, "--admin-key", adminKey, "--server-key", "server-key", "--tls", c.conf("cert.pem")+","+c.conf("key.pem"))
		s.door = &proc{t: c.t, admin: "https://" + admin, agent: "https://" + agents, ops: s.ops, client: c.client()}
	}
	s.process = newProcess(c.t, name, filepath.Join(c.bin, kind), args, nil)
	s.run()
	c.services = append(c.services, s)
	return s
}

// addAll starts a number of processes of each service and waits until all are
// ready.
func (c *cluster) addAll(copies int) {
	c.t.Helper()
	for range copies {
		for _, kind := range access.Services {
			c.add(kind)
		}
	}
	c.ready()
}

// ready waits until every service is ready.
func (c *cluster) ready() {
	c.t.Helper()
	for _, s := range c.services {
		eventually(c.t, s.name+" ready", func() error {
			if err := s.alive(); err != nil {
				c.t.Fatal(err)
			}
			return answersOK(s.ops + "/readyz")
		})
	}
}

// of returns the processes of a service.
func (c *cluster) of(kind string) (list []*service) {
	for _, s := range c.services {
		if s.kind == kind {
			list = append(list, s)
		}
	}
	return list
}

// doors are the gateways.
func (c *cluster) doors() (list []*proc) {
	for _, s := range c.of(access.Gateway) {
		list = append(list, s.door)
	}
	return list
}

// client returns an HTTP client that trusts the gateways' certificate.
func (c *cluster) client() *http.Client {
	return &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: c.authority()}, MaxIdleConnsPerHost: 64},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func (c *cluster) authority() *x509.CertPool {
	text, err := os.ReadFile(c.conf("ca.pem"))
	if err != nil {
		c.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	return pool
}

// connect connects to NATS as a user.
func (c *cluster) connect(user string, opts ...nats.Option) *nats.Conn {
	c.t.Helper()
	seed, err := nats.NkeyOptionFromSeed(c.conf(user + ".nk"))
	if err != nil {
		c.t.Fatal(err)
	}
	opts = append([]nats.Option{seed, nats.RootCAs(c.conf("ca.pem")), nats.CustomInboxPrefix(access.InboxPrefix(user)),
		nats.MaxReconnects(-1), nats.Timeout(10 * time.Second), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})}, opts...)
	nc, err := nats.Connect(c.urls(), opts...)
	if err != nil {
		c.t.Fatalf("connect as %s: %v", user, err)
	}
	c.t.Cleanup(nc.Close)
	return nc
}

// undisturbed demands that no service was refused anything on NATS and that
// none has panicked, except for refusals on subjects that begin with one of
// except.
func (c *cluster) undisturbed(except ...string) {
	c.t.Helper()
	for _, s := range c.services {
		for line := range strings.Lines(s.log()) {
			lower := strings.ToLower(line)
			refused := strings.Contains(lower, "permissions violation") &&
				!slices.ContainsFunc(except, func(subject string) bool { return strings.Contains(line, `"`+subject) })
			if refused || strings.Contains(lower, "panic") {
				c.t.Errorf("%s: %s", s.name, line)
			}
		}
	}
}

// writeCertificates makes an authority and a certificate of it for the
// loopback address, which proves a server to clients and to other servers.
func writeCertificates(caFile, certFile, keyFile string) error {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return err
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name, kind string
		der        []byte
	}{{caFile, "CERTIFICATE", caDER}, {certFile, "CERTIFICATE", leafDER}, {keyFile, "EC PRIVATE KEY", keyDER}} {
		if err := os.WriteFile(f.name, pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.der}), 0o600); err != nil {
			return err
		}
	}
	return nil
}
