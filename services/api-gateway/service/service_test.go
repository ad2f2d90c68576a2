package gateway

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
)

func TestMain(m *testing.M) {
	// The client's idle connections and what gin and Badger keep for the
	// whole process are no leaks of the gateway's.
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		client.CloseIdleConnections()
		os.Exit(code)
	}), goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"),
		goleak.IgnoreAnyFunction("github.com/golang/glog.(*fileSink).flushDaemon"))
}

func sha(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// status asks for /endpoints with a key.
func (r *rig) status(key string) int {
	r.t.Helper()
	return r.do("GET", r.svc.AdminAddr(), "/endpoints", nil, map[string]string{"Api-Key": key}).code
}

func TestOperators(t *testing.T) {
	var mu sync.Mutex
	var told []string
	r := newRig(t, func(c *Config) {
		c.AdminKey, c.ServerKey = "", ""
		c.OnAdminKey = func(key string) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, key)
		}
	})
	if len(told) != 1 || len(told[0]) != 64 {
		t.Fatalf("told %q, want one key", told)
	}
	if code := r.status(told[0]); code != 200 {
		t.Errorf("the generated key is answered with %d", code)
	}
	serverKey := r.svc.operators.key()
	if len(serverKey) != 64 {
		t.Errorf("server key %q", serverKey)
	}
	for _, m := range r.messages("KV_" + stream.Access) {
		if strings.Contains(string(m.Data), told[0]) {
			t.Error("the key itself is stored")
		}
	}
	r.restart()
	if code := r.status(told[0]); code != 200 || len(told) != 1 || r.svc.operators.key() != serverKey {
		t.Errorf("after a restart: %d, told %d times", code, len(told))
	}
	r.cfg.AdminKey, r.cfg.ServerKey = "chosen", "S"
	r.restart()
	if old, chosen := r.status(told[0]), r.status("chosen"); old != 403 || chosen != 200 || r.svc.operators.key() != "S" {
		t.Errorf("with a key given: the old one %d, the new one %d, server key %q", old, chosen, r.svc.operators.key())
	}
	r.cfg.AdminKey, r.cfg.ServerKey = "", ""
	r.restart()
	if chosen := r.status("chosen"); chosen != 200 || len(told) != 1 || r.svc.operators.key() != "S" {
		t.Errorf("without it again: %d, told %d times", chosen, len(told))
	}

	t.Run("a second operator, and a record that cannot be read", func(t *testing.T) {
		kv, err := r.bus.JS.KeyValue(t.Context(), stream.Access)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := kv.Put(t.Context(), message.OperatorKeyPrefix+"broken", []byte(`{"salt":"zz"}`)); err != nil {
			t.Fatal(err)
		}
		record, err := json.Marshal(newOperator("lena", "her key"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := kv.Put(t.Context(), message.OperatorKeyPrefix+"lena", record); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the operator is known", func() bool { return r.status("her key") == 200 })
		if who, _ := r.svc.operators.identify("her key"); who != "lena" {
			t.Errorf("identified as %q", who)
		}
		if err := kv.Delete(t.Context(), message.OperatorKeyPrefix+"lena"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the operator is gone", func() bool { return r.status("her key") == 403 })
	})
}

func TestStoreIsBuiltAgain(t *testing.T) {
	r := newRig(t, nil)
	e := r.endpoint()
	r.stop()
	if err := os.RemoveAll(r.cfg.DataDir); err != nil {
		t.Fatal(err)
	}
	r.start()
	if a := r.agent(e, "GET", "/key", nil); a.code != 200 || a.body != "TheServerKey" {
		t.Errorf("%d %s", a.code, a.body)
	}
	if n, err := testutil.GatherAndCount(r.metrics, "nightjar_api_gateway_view_position"); err != nil || n != 3 {
		t.Errorf("positions of %d views, %v, want 3", n, err)
	}
	if got := r.svc.credentials.count(); got != 1 {
		t.Errorf("%d endpoints, want 1", got)
	}
}

func TestKeysAreNotStored(t *testing.T) {
	r := newRig(t, nil)
	e := r.endpoint()
	r.stop()
	err := filepath.WalkDir(r.cfg.DataDir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if strings.Contains(string(content), e.Key) || strings.Contains(string(content), adminKey) {
			t.Errorf("%s contains a key", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A first request waits while as many hostnames are being bound as may be.
func TestFirstContactsWait(t *testing.T) {
	r := newRig(t, nil)
	if err := r.svc.binding.Acquire(t.Context(), maxBinding); err != nil {
		t.Fatal(err)
	}
	e := r.endpoint()
	answered := make(chan answer)
	go func() { answered <- r.agent(e, "GET", "/key", nil) }()
	eventually(t, "a request is in hand", func() bool { return len(r.svc.agentHTTP.http.Handler.(*router).slots) == 1 })
	r.registry.mu.Lock()
	binds := r.registry.binds
	r.registry.mu.Unlock()
	select {
	case a := <-answered:
		t.Errorf("answered with %d %s although it is not its turn", a.code, a.body)
	default:
		if binds != 0 {
			t.Errorf("the registry was asked to bind %d hostnames", binds)
		}
		r.svc.binding.Release(maxBinding)
		if a := <-answered; a.code != 200 {
			t.Errorf("%d %s", a.code, a.body)
		}
	}
}

func TestTooManyRequests(t *testing.T) {
	r := newRig(t, func(c *Config) { c.AgentRequests = 1 })
	e := r.endpoint()
	body, feed := io.Pipe()
	var wait sync.WaitGroup
	wait.Go(func() {
		if a := r.agent(e, "POST", "/logs", body); a.code != 200 {
			t.Errorf("%d %s", a.code, a.body)
		}
	})
	if _, err := io.WriteString(feed, "{}\n"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a request is in hand", func() bool { return len(r.svc.agentHTTP.http.Handler.(*router).slots) == 1 })
	if a := r.agent(e, "GET", "/key", nil); a.code != 503 || a.header.Get("Retry-After") == "" {
		t.Errorf("%d %s, Retry-After %q", a.code, a.body, a.header.Get("Retry-After"))
	}
	if code := r.status(adminKey); code != 200 {
		t.Errorf("the admin API answers %d", code)
	}
	if err := feed.Close(); err != nil {
		t.Fatal(err)
	}
	wait.Wait()
}

// rawLogs sends the head of a POST /logs with a body of size bytes over a
// connection of its own.
func (r *rig) rawLogs(conn net.Conn, e message.Endpoint, size int) {
	fmt.Fprintf(conn, "POST /logs HTTP/1.1\r\nHost: x\r\nUUID: %s\r\nApi-Key: %s\r\nHostname: H\r\nContent-Length: %d\r\n\r\n", e.UUID, e.Key, size)
}

func (r *rig) dial(address string) net.Conn {
	r.t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		r.t.Fatal(err)
	}
	return conn
}

func TestStalledTransferEnds(t *testing.T) {
	r := newRig(t, func(c *Config) { c.ProgressTimeout = 100 * time.Millisecond })
	conn := r.dial(r.svc.AgentAddr())
	r.rawLogs(conn, r.endpoint(), 1000)
	if reply, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(reply), "HTTP/1.1 400 ") {
		t.Errorf("%q, %v", reply, err)
	}
}

func TestSlowTransferGoesOn(t *testing.T) {
	const timeout = time.Second
	r := newRig(t, func(c *Config) { c.ProgressTimeout = timeout })
	e := r.endpoint()
	conn := r.dial(r.svc.AgentAddr())
	answers := bufio.NewReader(conn)
	for range 2 { // on the same connection
		line := `{"slow":true,"x":"yyyyyyy"}`
		r.rawLogs(conn, e, len(line))
		tick := time.NewTicker(3 * timeout / 2 / time.Duration(len(line)))
		for i := range line {
			<-tick.C
			if _, err := conn.Write([]byte(line[i : i+1])); err != nil {
				t.Fatal(err)
			}
		}
		tick.Stop()
		resp, err := http.ReadResponse(answers, nil)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%v, %v", resp, err)
		}
	}
}

func TestPanicIsAnswered(t *testing.T) {
	r := newRig(t, nil)
	routes := []route{
		{"GET", "/before", func(*gin.Context) { panic("a bug") }},
		{"GET", "/after", func(c *gin.Context) {
			_, _ = c.Writer.Write([]byte(strings.Repeat("x", 10000)))
			panic("a bug")
		}},
		{"GET", "/page", func(c *gin.Context) {
			r.svc.respond(c.Request.Context(), c.Writer, result{list: array(func(context.Context) ([]byte, bool, error) { panic("a bug") })}, nil)
		}},
	}
	srv := httptest.NewServer(newRouter(r.svc, "test", routes, 4))
	defer srv.Close()
	addr := strings.TrimPrefix(srv.URL, "http://")
	if a := r.do("GET", addr, "/before", nil, nil); a.code != 500 || a.body != "internal error\n" {
		t.Errorf("%d %q", a.code, a.body)
	}
	if a := r.do("GET", addr, "/after", nil, nil); !errors.Is(a.err, io.ErrUnexpectedEOF) {
		t.Errorf("%d %v, want an answer that is broken off", a.code, a.err)
	}
	if a := r.do("GET", addr, "/page", nil, nil); a.code != 200 || a.body != nok("internal error") {
		t.Errorf("%d %q", a.code, a.body)
	}
	if n := testutil.ToFloat64(r.svc.metrics.panics); n != 3 {
		t.Errorf("%v panics counted, want 3", n)
	}
}

func TestCleanPath(t *testing.T) {
	for in, want := range map[string]string{
		"": "/", "/": "/", "//": "/", "/a": "/a", "a": "/a", "/a/": "/a/", "//a//": "/a/", "/a/../b": "/b", "/../..": "/", "/a/./b/": "/a/b/",
	} {
		if got := cleanPath(in); got != want {
			t.Errorf("cleanPath(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestNewKey(t *testing.T) {
	seen := map[rune]bool{}
	for range 200 {
		key := newKey()
		if len(key) != 64 {
			t.Fatalf("key %q", key)
		}
		for _, c := range key {
			seen[c] = true
		}
	}
	if len(seen) != 62 {
		t.Errorf("%d different characters, want 62", len(seen))
	}
}

func TestNewRefusesAnAddressInUse(t *testing.T) {
	r := newRig(t, nil)
	cfg := r.cfg
	cfg.DataDir = t.TempDir()
	cfg.Bus, cfg.AdminAddr, cfg.AgentAddr = r.bus, "127.0.0.1:0", r.svc.AgentAddr()
	cfg.Metrics = newRegistry()
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "agent-addr "+r.svc.AgentAddr()) {
		t.Fatalf("error %v, want one that names the flag and the address", err)
	}
	// Nothing is left open: the store can be opened again.
	cfg.AgentAddr, cfg.Metrics = "127.0.0.1:0", newRegistry()
	svc, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := svc.Run(canceled()); err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestStopFinishesRequestsInHand(t *testing.T) {
	r := newRig(t, nil)
	e := r.endpoint()
	body, feed := io.Pipe()
	var wait sync.WaitGroup
	wait.Go(func() {
		if a := r.agent(e, "POST", "/logs", body); a.code != 200 {
			t.Errorf("%d %s", a.code, a.body)
		}
	})
	if _, err := io.WriteString(feed, `{"n":1}`+"\n"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a request is in hand", func() bool { return len(r.svc.agentHTTP.http.Handler.(*router).slots) == 1 })
	wait.Go(r.stop)
	eventually(t, "the gateway stops", func() bool { return r.svc.Ready() != nil })
	if _, err := io.WriteString(feed, `{"n":2}`+"\n"); err != nil {
		t.Fatal(err)
	}
	if err := feed.Close(); err != nil {
		t.Fatal(err)
	}
	wait.Wait()
	if lines, _ := r.events(e.UUID); len(lines) != 2 {
		t.Errorf("%d events are stored, want 2", len(lines))
	}
	r.registry.mu.Lock()
	defer r.registry.mu.Unlock()
	if _, told := r.registry.seen[e.UUID]; !told {
		t.Error("the registry was not told who was last seen")
	}
}

func TestMetrics(t *testing.T) {
	r := newRig(t, nil)
	e := r.endpoint()
	r.agent(e, "POST", "/logs", strings.NewReader("{}\n{\"a\":1}\nbad\n"))
	r.agent(e, "GET", "/nothing", nil)
	r.do("GET", r.svc.AdminAddr(), "/endpoints", nil, nil)
	want := `
# HELP nightjar_api_gateway_batches_published_total Batches that are stored in the stream EVENTS, or in INTAKE on their way there.
# TYPE nightjar_api_gateway_batches_published_total counter
nightjar_api_gateway_batches_published_total 1
# HELP nightjar_api_gateway_bytes_received_total Bytes of the bodies of POST /logs, as they were sent.
# TYPE nightjar_api_gateway_bytes_received_total counter
nightjar_api_gateway_bytes_received_total 15
# HELP nightjar_api_gateway_endpoints Endpoints that may talk to the manager.
# TYPE nightjar_api_gateway_endpoints gauge
nightjar_api_gateway_endpoints 1
# HELP nightjar_api_gateway_events_received_total Events that are stored in the stream EVENTS, or in INTAKE on their way there.
# TYPE nightjar_api_gateway_events_received_total counter
nightjar_api_gateway_events_received_total 2
# HELP nightjar_api_gateway_requests_in_flight Requests being worked on.
# TYPE nightjar_api_gateway_requests_in_flight gauge
nightjar_api_gateway_requests_in_flight{api="admin"} 0
nightjar_api_gateway_requests_in_flight{api="agent"} 0
# HELP nightjar_api_gateway_requests_total Requests answered.
# TYPE nightjar_api_gateway_requests_total counter
nightjar_api_gateway_requests_total{api="admin",code="200",route="/endpoints"} 1
nightjar_api_gateway_requests_total{api="admin",code="403",route="/endpoints"} 1
nightjar_api_gateway_requests_total{api="agent",code="200",route="/logs"} 1
nightjar_api_gateway_requests_total{api="agent",code="404",route="none"} 1
# HELP nightjar_dead_letters_total Dead letters written.
# TYPE nightjar_dead_letters_total counter
nightjar_dead_letters_total{reason="not-json",service="api-gateway"} 1
nightjar_dead_letters_total{reason="not-object",service="api-gateway"} 0
nightjar_dead_letters_total{reason="too-deep",service="api-gateway"} 0
nightjar_dead_letters_total{reason="too-long",service="api-gateway"} 0
`
	var err error
	names := []string{"nightjar_api_gateway_batches_published_total", "nightjar_api_gateway_bytes_received_total", "nightjar_api_gateway_endpoints",
		"nightjar_api_gateway_events_received_total", "nightjar_api_gateway_requests_in_flight", "nightjar_api_gateway_requests_total", "nightjar_dead_letters_total"}
	// A request is counted a moment after its answer has gone out.
	eventually(t, "everything is counted", func() bool {
		err = testutil.GatherAndCompare(r.metrics, strings.NewReader(want), names...)
		return err == nil
	})
	if problems, err := testutil.GatherAndLint(r.metrics); err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}
