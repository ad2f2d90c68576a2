package ops_test

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/ops"
)

func listen(t *testing.T, addr string) *ops.Server {
	t.Helper()
	s, err := ops.Listen(addr, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func serve(t *testing.T) *ops.Server {
	t.Helper()
	s := listen(t, "127.0.0.1:0")
	done := make(chan struct{})
	go func() { defer close(done); s.Serve() }()
	t.Cleanup(func() { s.Close(); <-done })
	return s
}

func get(t *testing.T, s *ops.Server, path string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.Addr()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

func TestMetrics(t *testing.T) {
	s := serve(t)
	for _, service := range []string{"rule_engine", "log_ingest"} {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "nightjar_" + service + "_requests_total", Help: "Requests."})
		s.Registry(service).MustRegister(c)
		c.Add(7)
	}
	s.Registry("process").MustRegister(ops.SyncInterval(1500 * time.Millisecond))
	code, body := get(t, s, "/metrics")
	if code != http.StatusOK {
		t.Errorf("status %d", code)
	}
	for _, want := range []string{
		"nightjar_build_info{goversion=\"go", "nightjar_rule_engine_requests_total 7\n", "nightjar_log_ingest_requests_total 7\n",
		"\nnightjar_sync_interval_seconds 1.5\n", "\ngo_goroutines ", "\nprocess_start_time_seconds ",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %q in /metrics", want)
		}
	}
}

// One metric that cannot be had does not hide the others.
func TestMetricsOfBrokenRegistry(t *testing.T) {
	s := serve(t)
	for range 2 {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "nightjar_twice", Help: "The same in two registries."})
		s.Registry("twice").MustRegister(g)
	}
	if code, body := get(t, s, "/metrics"); code != http.StatusOK || !strings.Contains(body, "nightjar_build_info{") {
		t.Errorf("status %d, body %.200s", code, body)
	}
}

func TestReadiness(t *testing.T) {
	s := serve(t)
	var lag atomic.Bool
	lag.Store(true)
	s.Check("rule-engine", func() error { return nil })
	s.Check("log-ingest", func() error {
		if lag.Load() {
			return errors.New("view events is 12 behind")
		}
		return nil
	})
	state := func(wantCode int) map[string]string {
		t.Helper()
		code, body := get(t, s, "/readyz")
		m := map[string]string{}
		if err := json.Unmarshal([]byte(body), &m); err != nil || code != wantCode || len(m) != 2 {
			t.Fatalf("status %d, want %d; body %s; %v", code, wantCode, body, err)
		}
		return m
	}
	if m := state(http.StatusServiceUnavailable); m["log-ingest"] != "view events is 12 behind" || m["rule-engine"] != "ready" {
		t.Errorf("state %v", m)
	}
	// A process that is not ready is nevertheless alive.
	if code, body := get(t, s, "/healthz"); code != http.StatusOK || body != "ok\n" {
		t.Errorf("/healthz: %d %q", code, body)
	}
	told := func(want ...string) {
		t.Helper()
		_, body := get(t, s, "/metrics")
		for _, line := range want {
			if !strings.Contains(body, "\nnightjar_ready{"+line+"\n") {
				t.Errorf("no nightjar_ready{%s in /metrics", line)
			}
		}
	}
	told(`check="log-ingest"} 0`, `check="rule-engine"} 1`)
	lag.Store(false)
	told(`check="log-ingest"} 1`, `check="rule-engine"} 1`)
	if m := state(http.StatusOK); m["log-ingest"] != "ready" || m["rule-engine"] != "ready" {
		t.Errorf("state %v", m)
	}
	if code, _ := get(t, s, "/debug/pprof/"); code != http.StatusNotFound {
		t.Errorf("an unknown path is %d", code)
	}
}

func TestListen(t *testing.T) {
	s := listen(t, "127.0.0.1:0")
	if _, err := ops.Listen(s.Addr(), slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "ops-addr "+s.Addr()) {
		t.Errorf("a port that is taken: %v", err)
	}
	// A server that never served gives its port back, too.
	s.Close()
	listen(t, s.Addr())
}
