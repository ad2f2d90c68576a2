package target_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/nightjar-edr/nightjar/services/siem-forwarder/internal/format"
	"github.com/nightjar-edr/nightjar/services/siem-forwarder/internal/target"
)

const timeout = 30 * time.Second

var when = time.Date(2025, 3, 4, 8, 30, 0, 366100, time.FixedZone("", 3600))

func record(id, body string) target.Record {
	return target.Record{
		ID: id, Body: []byte(body), Short: func() ([]byte, error) { return []byte(body), nil },
		Time: when, Host: "WS 01", IP: "192.0.2.21", Criticality: 9, Severity: "critical",
	}
}

func records(n int) []target.Record {
	list := make([]target.Record, n)
	for i := range list {
		list[i] = record(fmt.Sprint("id-", i), fmt.Sprintf(`{"n":%d,"text":"ü\n"}`, i))
	}
	return list
}

func open(t *testing.T, o target.Options) target.Target {
	t.Helper()
	if o.Timeout == 0 {
		o.Timeout = timeout
	}
	if o.Shortened == nil {
		o.Shortened = func() {}
	}
	if o.Format == "" {
		o.Format = format.ECS
	}
	tg, err := target.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tg.Close(); err != nil {
			t.Error(err)
		}
	})
	return tg
}

func taken(t *testing.T, results []error, n int) {
	t.Helper()
	if len(results) != n {
		t.Fatalf("%d results for %d records", len(results), n)
	}
	for i, err := range results {
		if err != nil {
			t.Errorf("record %d: %v", i, err)
		}
	}
}

// certificate is a server's TLS configuration and the file of its authority.
func certificate(t *testing.T) (*tls.Config, string) {
	t.Helper()
	s := httptest.NewUnstartedServer(nil)
	s.StartTLS()
	defer s.Close()
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: s.TLS.Certificates}, file
}

// receiver is a syslog receiver. It hands each connection to serve.
func receiver(t *testing.T, config *tls.Config, serve func(n int, c net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if config != nil {
		ln = tls.NewListener(ln, config)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; ; n++ {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			serve(n, c)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = ln.Close(); <-done })
	return ln.Addr().String()
}

// frames reads frames that begin with their length until the connection ends.
func frames(c io.Reader, each func(m string)) {
	r := bufio.NewReader(c)
	for {
		length, err := r.ReadString(' ')
		if err != nil {
			return
		}
		n, err := strconv.Atoi(strings.TrimSuffix(length, " "))
		if err != nil {
			each("no length: " + length)
			return
		}
		m := make([]byte, n)
		if _, err := io.ReadFull(r, m); err != nil {
			return
		}
		each(string(m))
	}
}

var rfc5424 = regexp.MustCompile(`^<130>1 2025-03-04T07:30:00\.000366Z WS_01 nightjar - alert \[origin ip="192\.0\.2\.21" software="nightjar"\] (\{.*\})$`)

// TestSyslog sends to a real receiver, over TCP and over TLS.
func TestSyslog(t *testing.T) {
	t.Parallel()
	config, ca := certificate(t)
	for scheme, config := range map[string]*tls.Config{"syslog+tcp": nil, "syslog+tls": config} {
		t.Run(scheme, func(t *testing.T) {
			got := make(chan string, 100)
			addr := receiver(t, config, func(_ int, c net.Conn) { frames(c, func(m string) { got <- m }) })
			tg := open(t, target.Options{Output: scheme + "://" + addr, CAFile: ca})
			for range 2 { // on one connection
				want := records(3)
				taken(t, tg.Send(t.Context(), want), 3)
				for _, r := range want {
					m := rfc5424.FindStringSubmatch(<-got)
					if m == nil || m[1] != string(r.Body) {
						t.Errorf("got %q for %s", m, r.Body)
					}
				}
			}
		})
	}
}

// TestSyslogUntrusted holds that nothing is sent to a receiver whose
// certificate nobody vouches for.
func TestSyslogUntrusted(t *testing.T) {
	t.Parallel()
	config, _ := certificate(t)
	_, other := certificate(t)
	addr := receiver(t, config, func(_ int, c net.Conn) { frames(c, func(m string) { t.Errorf("got %q", m) }) })
	// The certificate of httptest is the same in both; a name it is not for
	// shows the check.
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	tg := open(t, target.Options{Output: "syslog+tls://localhost:" + port, CAFile: other})
	if err := tg.Send(t.Context(), records(1))[0]; err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("got %v", err)
	}
}

// TestSyslogBroken: a receiver that closes the connection without having read
// gets everything again.
func TestSyslogBroken(t *testing.T) {
	t.Parallel()
	got := make(chan string, 100)
	addr := receiver(t, nil, func(n int, c net.Conn) {
		if n > 0 {
			frames(c, func(m string) { got <- m })
		}
	})
	tg := open(t, target.Options{Output: "syslog+tcp://" + addr})
	for i, err := range tg.Send(t.Context(), records(2)) {
		if err == nil {
			t.Errorf("record %d was taken by a receiver that closed", i)
		}
	}
	taken(t, tg.Send(t.Context(), records(2)), 2)
	for range 2 {
		<-got
	}
}

// TestSyslogStuck: what a receiver does not take out of the connection is not
// taken.
func TestSyslogStuck(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	addr := receiver(t, nil, func(_ int, c net.Conn) {
		if err := c.(*net.TCPConn).SetReadBuffer(4096); err != nil {
			t.Error(err)
		}
		<-release
	})
	defer close(release)
	tg := open(t, target.Options{Output: "syslog+tcp://" + addr, SyslogBytes: 64 << 20, Timeout: time.Second})
	r := record("big", strings.Repeat("x", 32<<20))
	if err := tg.Send(t.Context(), []target.Record{r})[0]; err == nil {
		t.Error("taken by a receiver that reads nothing")
	}
}

// TestSyslogShortened: a message that is too long is sent without the original
// first, then cut, and says so.
func TestSyslogShortened(t *testing.T) {
	t.Parallel()
	const limit = 2048
	long := strings.Repeat("ä", limit)
	for _, c := range []struct {
		name   string
		format format.Format
		short  string
		check  func(body string) bool
	}{
		{"without the original", format.ECS, `{"short":true}`, func(b string) bool { return b == `{"short":true}` }},
		{"cut between characters", format.ECS, long, func(b string) bool {
			return strings.HasPrefix(b, "ääää") && strings.HasSuffix(b, "...[truncated: 4096 bytes in all]")
		}},
		{"not within an escape", format.CEF, strings.Repeat(`\\`, limit), func(b string) bool {
			return strings.Count(strings.TrimSuffix(b, "...[truncated: 4096 bytes in all]"), `\`)%2 == 0
		}},
	} {
		for shift := range 2 {
			got := make(chan string, 1)
			addr := receiver(t, nil, func(_ int, conn net.Conn) { frames(conn, func(m string) { got <- m }) })
			shortened := 0
			tg := open(t, target.Options{Output: "syslog+tcp://" + addr, SyslogBytes: limit + shift, Format: c.format, Shortened: func() { shortened++ }})
			r := record("id", long+long)
			r.Short = func() ([]byte, error) { return []byte(c.short), nil }
			taken(t, tg.Send(t.Context(), []target.Record{r}), 1)
			m := <-got
			_, body, _ := strings.Cut(m, "] ")
			if len(m) > limit+shift || !utf8.ValidString(m) || !c.check(body) || shortened != 1 {
				t.Errorf("%s: %d bytes, %d shortened: %.80q ... %q", c.name, len(m), shortened, body, body[max(0, len(body)-60):])
			}
		}
	}
}

// TestFile appends, follows a file that is moved away, and ends a line that was
// left without its end.
func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "alerts.jsonl")
	if err := os.WriteFile(path, []byte(`{"half":`), 0o600); err != nil {
		t.Fatal(err)
	}
	tg := open(t, target.Options{Output: path})
	taken(t, tg.Send(t.Context(), records(1)), 1)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	taken(t, tg.Send(t.Context(), records(2)), 2)
	for file, want := range map[string]int{path + ".1": 2, path: 2} {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(data, []byte("\n")); n != want || !bytes.HasSuffix(data, []byte("\"}\n")) {
			t.Errorf("%s: %q", filepath.Base(file), data)
		}
	}
}

func TestOptions(t *testing.T) {
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		o    target.Options
		want string
	}{
		{target.Options{Output: "ftp://x"}, "ftp://x"},
		{target.Options{Output: "syslog+tls://host"}, "host:port"},
		{target.Options{Output: "syslog+tls://host:6514/path"}, "host:port"},
		{target.Options{Output: "https://u:p@host", Webhook: target.Plain}, "token file"},
		{target.Options{Output: "https://host", Webhook: "else"}, "splunk-hec"},
		{target.Options{Output: "https://host", Webhook: target.Elastic}, "index"},
		{target.Options{Output: "https://host", Webhook: target.Elastic, Index: "x", Format: format.CEF}, "ecs"},
		{target.Options{Output: "http://siem.example", Webhook: target.Plain, TokenFile: token}, "https only"},
		{target.Options{Output: "https://host", Webhook: target.Plain, TokenFile: filepath.Join(dir, "none")}, "none"},
		{target.Options{Output: "https://host", Webhook: target.Plain, CAFile: token}, "no certificate"},
		{target.Options{Output: "https://host", Webhook: target.Plain, CertFile: token, KeyFile: token}, "output-cert"},
		{target.Options{Output: filepath.Join(dir, "no", "file")}, "no such file"},
	} {
		if _, err := target.Open(c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c.o, err)
		}
	}
}
