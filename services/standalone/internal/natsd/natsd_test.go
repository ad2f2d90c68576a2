package natsd_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server/ats"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/certs"
	"github.com/nightjar-edr/nightjar/pkg/config"
	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/services/standalone/internal/natsd"
)

const (
	siem     = "siem"
	endpoint = "03e31275-2277-d8e0-bb5f-480fac7ee4ef"
)

var discard = slog.New(slog.DiscardHandler)

// running is a server with two SIEMs, and the folder of their seeds.
type running struct {
	*natsd.Server
	seeds string
}

func start(t *testing.T, cfg natsd.Config) running {
	t.Helper()
	r := running{seeds: t.TempDir()}
	cfg.Log, cfg.SIEMs = discard, map[string]string{}
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	for _, name := range []string{siem, "other"} {
		public, _, err := natsd.UserKey(r.seeds, name)
		if err != nil {
			t.Fatal(err)
		}
		cfg.SIEMs[name] = public
	}
	var err error
	if r.Server, err = natsd.Start(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Stop)
	return r
}

func (r running) service(t *testing.T, name string) *bus.Bus {
	t.Helper()
	b, err := bus.Connect(bus.Options{Service: name, Seed: r.Seeds[name], InProcess: r, Log: discard})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// siem connects as a SIEM does: over the network with its seed file.
func (r running) siem(t *testing.T, name string, opts ...nats.Option) *nats.Conn {
	t.Helper()
	seed, err := nats.NkeyOptionFromSeed(filepath.Join(r.seeds, name+".nk"))
	if err != nil {
		t.Fatal(err)
	}
	opts = append(opts, seed, nats.CustomInboxPrefix(access.InboxPrefix(name)), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	nc, err := nats.Connect("nats://"+r.Addr().String(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// raise stores an alert.
func raise(t *testing.T, b *bus.Bus, data string) {
	t.Helper()
	if _, err := b.JS.Publish(t.Context(), subject.Alerts(subject.High, endpoint), []byte(data)); err != nil {
		t.Fatal(err)
	}
}

// A SIEM sees alerts as they come, and reads and acknowledges through its own
// consumer; the subjects of everybody else are closed to it.
func TestSIEM(t *testing.T) {
	r := start(t, natsd.Config{Addr: "127.0.0.1:0", Sync: config.Sync{Always: true}})
	rules := r.service(t, access.Rules)
	if err := stream.Ensure(t.Context(), rules.JS, stream.Alerts, stream.Limits{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{siem, "other"} {
		if _, err := rules.JS.CreateOrUpdateConsumer(t.Context(), stream.Alerts, jetstream.ConsumerConfig{Durable: name, AckPolicy: jetstream.AckExplicitPolicy}); err != nil {
			t.Fatal(err)
		}
	}
	nc := r.siem(t, siem)
	live, err := nc.SubscribeSync("edr.alerts.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	raise(t, rules, "alert")
	if m, err := live.NextMsg(10 * time.Second); err != nil || string(m.Data) != "alert" {
		t.Fatalf("live: %v", err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	consumer, err := js.Consumer(t.Context(), stream.Alerts, siem)
	if err != nil {
		t.Fatal(err)
	}
	m, err := consumer.Next(jetstream.FetchMaxWait(10 * time.Second))
	if err != nil || string(m.Data()) != "alert" {
		t.Fatalf("reliable: %v", err)
	}
	if err := m.DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	if info, err := consumer.Info(t.Context()); err != nil || info.AckFloor.Stream != 1 || info.NumPending != 0 {
		t.Errorf("consumer %+v, %v", info, err)
	}
	for _, s := range []string{
		subject.Alerts(subject.High, endpoint), subject.Events(endpoint), "edr.rules.count", "$KV.access.operator.admin",
		"$JS.API.STREAM.INFO." + stream.Alerts, "$JS.API.STREAM.PURGE." + stream.Alerts, "$JS.API.CONSUMER.CREATE." + stream.Alerts + ".mine",
		"$JS.API.CONSUMER.DELETE." + stream.Alerts + "." + siem, "$JS.API.CONSUMER.INFO." + stream.Alerts + ".other",
		"$JS.API.CONSUMER.MSG.NEXT." + stream.Alerts + ".other", access.InboxPrefix("other") + ".x",
	} {
		if err := nc.Publish(s, nil); err != nil {
			t.Fatal(err)
		}
		refused(t, nc, s)
	}
	for _, s := range []string{">", "edr.>", subject.AllEvents, subject.AllAudit, "_INBOX.>", access.InboxPrefix("other") + ".>", access.InboxPrefix(access.Gateway) + ".>"} {
		if _, err := nc.SubscribeSync(s); err != nil {
			t.Fatal(err)
		}
		refused(t, nc, s)
	}
}

func refused(t *testing.T, nc *nats.Conn, s string) {
	t.Helper()
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := nc.LastError(); !errors.Is(err, nats.ErrPermissionViolation) || !strings.Contains(err.Error(), `"`+s+`"`) {
		t.Errorf("%s was not refused: %v", s, err)
	}
}

// Each service makes what it owns and no more.
func TestServices(t *testing.T) {
	r := start(t, natsd.Config{Sync: config.Sync{Interval: time.Minute}})
	if a := r.Addr(); a != nil {
		t.Errorf("listens on %v", a)
	}
	owner := map[string]string{stream.Events: access.Gateway, stream.Alerts: access.Rules, stream.Audit: access.Gateway, stream.DeadLetters: access.Gateway}
	for _, name := range access.Services {
		b := r.service(t, name)
		if got := b.NC.MaxPayload(); got < stream.MaxMessage {
			t.Errorf("%s: messages of %d bytes at most", name, got)
		}
		for s, by := range owner {
			if by == name {
				if err := stream.Ensure(t.Context(), b.JS, s, stream.Limits{}); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				continue
			}
			api := "$JS.API.STREAM.CREATE." + s
			if err := b.NC.Publish(api, nil); err != nil {
				t.Fatal(err)
			}
			refused(t, b.NC, api)
		}
	}
}

func TestStrangers(t *testing.T) {
	r := start(t, natsd.Config{Addr: "127.0.0.1:0"})
	public, _, err := natsd.UserKey(t.TempDir(), siem) // of the right name, and another key
	if err != nil {
		t.Fatal(err)
	}
	sign := func([]byte) ([]byte, error) { return make([]byte, 64), nil }
	known, _, err := natsd.UserKey(r.seeds, siem)
	if err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]nats.Option{
		"nobody": nats.Name("nobody"), "user": nats.UserInfo("admin", "admin"), "token": nats.Token("t"),
		"unknown key": nats.Nkey(public, sign), "bad signature": nats.Nkey(known, sign),
	} {
		t.Run(name, func(t *testing.T) {
			nc, err := nats.Connect("nats://"+r.Addr().String(), o)
			if err == nil {
				nc.Close()
				t.Fatal("connected")
			}
			if !errors.Is(err, nats.ErrAuthorization) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// With a certificate nobody gets in over the network without TLS.
func TestTLS(t *testing.T) {
	cert, err := certs.Load("auto", t.TempDir(), []string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	r := start(t, natsd.Config{Addr: "127.0.0.1:0", TLS: cert.Config})
	r.service(t, access.Scorer) // in the process there is no need of it
	nc := r.siem(t, siem, nats.RootCAs(cert.CAFile))
	if st, err := nc.TLSConnectionState(); err != nil || st.Version < tls.VersionTLS12 {
		t.Errorf("%v, %v", st.Version, err)
	}
	seed, err := nats.NkeyOptionFromSeed(filepath.Join(r.seeds, siem+".nk"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = nats.Connect("nats://"+r.Addr().String(), seed)
	if !errors.As(err, new(x509.UnknownAuthorityError)) {
		t.Errorf("a client that does not know the CA: %v", err)
	}
}

// What was acknowledged is there after a restart, whose services have other
// keys and whose SIEMs have the same.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	r := start(t, natsd.Config{Dir: dir})
	rules := r.service(t, access.Rules)
	if err := stream.Ensure(t.Context(), rules.JS, stream.Alerts, stream.Limits{}); err != nil {
		t.Fatal(err)
	}
	raise(t, rules, "alert")
	rules.Close()
	r.Stop()
	again := start(t, natsd.Config{Dir: dir})
	s, err := again.service(t, access.Rules).JS.Stream(t.Context(), stream.Alerts)
	if err != nil || s.CachedInfo().State.Msgs != 1 {
		t.Fatalf("stream after the restart: %v", err)
	}
	if string(again.Seeds[access.Rules]) == string(r.Seeds[access.Rules]) {
		t.Error("the services have the same keys")
	}
}

func TestAddressErrors(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for _, addr := range []string{"127.0.0.1", "127.0.0.1:nats-port", "127.0.0.1:99999", "127.0.0.1:-2", ln.Addr().String()} {
		s, err := natsd.Start(natsd.Config{Dir: t.TempDir(), Addr: addr, Log: discard})
		if err == nil {
			s.Stop()
			t.Errorf("%s was taken", addr)
		} else if !strings.Contains(err.Error(), "nats-addr "+addr) {
			t.Errorf("%s: %v", addr, err)
		}
	}
}

func TestUserKey(t *testing.T) {
	dir := t.TempDir()
	public, file, err := natsd.UserKey(dir, siem)
	if err != nil || file != filepath.Join(dir, "siem.nk") || !strings.HasPrefix(public, "U") {
		t.Fatalf("%q in %s, %v", public, file, err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if again, _, err := natsd.UserKey(dir, siem); err != nil || again != public {
		t.Errorf("the second time %q, %v", again, err)
	}
	if other, _, err := natsd.UserKey(dir, "other"); err != nil || other == public {
		t.Errorf("another SIEM: %q, %v", other, err)
	}
	for _, content := range []string{"", "not a seed\n"} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, _, err := natsd.UserKey(dir, siem); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("file with %q: %q, %v", content, got, err)
		}
	}
	if _, _, err := natsd.UserKey(filepath.Join(dir, "missing"), siem); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
}

// The server's clock goes, and wakes the process once a second, not 10 times:
// with the first stream, and with those that a server finds at its start.
func TestClock(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		r := start(t, natsd.Config{Dir: dir})
		if err := stream.Ensure(t.Context(), r.service(t, access.Rules).JS, stream.Alerts, stream.Limits{}); err != nil {
			t.Fatal(err)
		}
		var set []time.Time
		last := ats.AccessTime()
		for end := time.Now().Add(20 * time.Second); len(set) < 3 && time.Now().Before(end); time.Sleep(time.Millisecond) {
			if now := ats.AccessTime(); now != last {
				set, last = append(set, time.Unix(0, now)), now
			}
		}
		// Each is at a beat, or late and before the next one.
		if len(set) < 3 || set[2].Sub(set[0]) <= time.Second || time.Since(set[2]) > 20*time.Second {
			t.Errorf("set at %v", set)
		}
		r.Stop()
	}
}
