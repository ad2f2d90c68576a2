package canary_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	canary "github.com/nightjar-edr/nightjar/services/canary/service"
)

const deadline = 30 * time.Second

// run is a canary at work.
type run struct {
	*canary.Service
	reg  *prometheus.Registry
	stop func()
}

func (m *manager) config(dir string, timeout time.Duration) canary.Config {
	return canary.Config{AdminURL: m.server.URL, AgentURL: m.server.URL + "/", AdminKey: operatorKey, Interval: 10 * time.Millisecond, Timeout: timeout,
		Env: lifecycle.Env{Bus: m.own, Log: lifecycle.Discard(), DataDir: dir}}
}

// start starts a canary, which ends with the test at the latest.
func start(t *testing.T, cfg canary.Config) *run {
	t.Helper()
	r := &run{reg: prometheus.NewRegistry()}
	cfg.Metrics = r.reg
	var err error
	if r.Service, err = canary.New(cfg); err != nil {
		t.Fatal(err)
	}
	if r.Ready() == nil {
		t.Error("ready before the first round")
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	r.stop = func() {
		cancel()
		if err, open := <-ended; open {
			close(ended)
			if err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(r.stop)
	return r
}

// samples are the metrics of a name that are not 0, by their labels.
func (r *run) samples(t *testing.T, name string) map[string]float64 {
	t.Helper()
	families, err := r.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]float64{}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			slices.Reverse(labels) // step before reason
			if v := m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount()); v != 0 {
				found[strings.Join(labels, " ")] = v
			}
		}
	}
	return found
}

func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(deadline); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

// rounds waits until so many rounds have ended with a result.
func (r *run) rounds(t *testing.T, result string, n float64) {
	t.Helper()
	eventually(t, "rounds", func() error {
		if got := r.samples(t, "nightjar_canary_rounds_total"); got[result] < n {
			return fmt.Errorf("%v: %w", got, r.Ready())
		}
		return nil
	})
}

func TestRounds(t *testing.T) {
	m, dir := newManager(t), filepath.Join(t.TempDir(), "data")
	r := start(t, m.config(dir, deadline))
	r.rounds(t, "success", 3)
	if err := r.Ready(); err != nil {
		t.Error(err)
	}
	if f := r.samples(t, "nightjar_canary_step_failures_total"); len(f) > 0 {
		t.Errorf("failures %v", f)
	}
	if n := r.samples(t, "nightjar_canary_step_duration_seconds"); len(n) != 11 {
		t.Errorf("steps %v", n)
	}
	if n := r.samples(t, "nightjar_canary_step_last_success_timestamp_seconds"); len(n) != 11 {
		t.Errorf("successes %v", n)
	}
	r.stop()
	if info, err := os.Stat(filepath.Join(dir, "endpoint.json")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key of the endpoint: %v, %v", info, err)
	}
	again := start(t, m.config(dir, time.Second)) // a round in hand may wait for what the old endpoint is refused
	again.rounds(t, "success", 2)
	m.mu.Lock()
	if len(m.endpoints) != 1 || m.rules != 1 {
		t.Errorf("endpoints %v, %d rules made", m.endpoints, m.rules)
	}
	m.endpoints = append(m.endpoints, firstUUID[:35]+"7") // the old one is unknown now
	m.rules = 0
	m.mu.Unlock()
	eventually(t, "a new endpoint and the rule", func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		if len(m.endpoints) != 3 || m.rules != 1 {
			return fmt.Errorf("endpoints %v, %d rules", m.endpoints, m.rules)
		}
		return nil
	})
	again.rounds(t, "success", again.samples(t, "nightjar_canary_rounds_total")["success"]+2)
}

// Whatever goes wrong is found where it does, and under its reason. What does
// not hang on it goes on.
func TestFailures(t *testing.T) {
	refuse := func(w http.ResponseWriter, _ *http.Request) { answer(w, nil, "no") }
	unavailable := func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "later", http.StatusServiceUnavailable) }
	broken := func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	data := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { answer(w, json.RawMessage(text), "") }
	}
	const soon = 300 * time.Millisecond
	for _, tc := range []struct {
		name    string
		prepare func(m *manager)
		timeout time.Duration
		want    []string
	}{
		{"no endpoint", func(m *manager) { m.wrong["PUT /endpoints"] = refuse }, deadline, []string{"endpoint refused"}},
		{"endpoint without key", func(m *manager) { m.wrong["PUT /endpoints"] = data(`{"uuid":"` + firstUUID + `"}`) }, deadline, []string{"endpoint wrong"}},
		{"no JSON", func(m *manager) { m.wrong["PUT /endpoints"] = func(http.ResponseWriter, *http.Request) {} }, deadline, []string{"endpoint wrong"}},
		{"broken connection", func(m *manager) { m.wrong["PUT /endpoints"] = broken }, deadline, []string{"endpoint unreachable"}},
		{"rules away", func(m *manager) { m.wrong["GET /rules"] = refuse }, deadline, []string{"rule refused"}},
		{"rule refused", func(m *manager) { m.wrong["POST /rules"] = refuse }, deadline, []string{"rule refused"}},
		{"full", func(m *manager) { m.wrong["POST /logs"] = unavailable }, deadline, []string{"event refused"}},
		{"event lost", func(m *manager) { m.wrong["POST /logs"] = func(http.ResponseWriter, *http.Request) {} }, soon, []string{"alert timeout"}},
		{"no alert", func(m *manager) { m.alter = func(*message.Alert) bool { return false } }, soon, []string{"alert timeout"}},
		{"other severity", func(m *manager) { m.alter = func(a *message.Alert) bool { a.Criticality = 9; return true } }, soon, []string{"alert timeout"}},
		{"other endpoint", func(m *manager) {
			m.alter = func(a *message.Alert) bool { a.Endpoint = firstUUID[:35] + "9"; return true }
		}, soon, []string{"alert timeout"}},
		{"other signature", func(m *manager) {
			m.alter = func(a *message.Alert) bool { a.Signatures = []string{"Other"}; return true }
		}, deadline, []string{"alert wrong"}},
		{"agent's mark", func(m *manager) {
			m.alter = func(a *message.Alert) bool { a.Origin = message.OriginAgent; return true }
		}, deadline, []string{"alert wrong"}},
		{"not stored", func(m *manager) { m.wrong["GET /endpoints/{uuid}/alerts"] = data(`[{"another":"alert"}]`) }, soon, []string{"query timeout"}},
		{"stored twice", func(m *manager) {
			m.wrong["GET /endpoints/{uuid}/alerts"] = func(w http.ResponseWriter, _ *http.Request) {
				answer(w, []json.RawMessage{m.line, m.line}, "")
			}
		}, deadline, []string{"query wrong"}},
		{"queries refused", func(m *manager) { m.wrong["GET /endpoints/{uuid}/alerts"] = refuse }, soon, []string{"query refused"}},
		{"no report", func(m *manager) { m.wrong["GET /endpoints/{uuid}/report"] = data("null") }, soon, []string{"score timeout"}},
		{"old report", func(m *manager) {
			m.wrong["GET /endpoints/{uuid}/report"] = data(`{"count-by-signature":{"NightjarCanary":4},"score":3,"stop-time":"2026-01-01T00:00:00Z"}`)
		}, soon, []string{"score timeout"}},
		{"no score", func(m *manager) {
			m.wrong["GET /endpoints/{uuid}/report"] = data(`{"count-by-signature":{"NightjarCanary":4},"score":0,"stop-time":"2200-01-01T00:00:00Z"}`)
		}, deadline, []string{"score wrong"}},
		{"no queue", func(m *manager) { m.wrong["POST /endpoints/{uuid}/command"] = refuse }, deadline, []string{"command refused"}},
		{"other command queued", func(m *manager) {
			m.wrong["POST /endpoints/{uuid}/command"] = data(`{"command":{"uuid":"` + commandUUID + `","name":"rm","args":["-r","/"]}}`)
		}, deadline, []string{"command wrong"}},
		{"nothing handed out", func(m *manager) {
			m.wrong["GET /commands"] = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }
		}, soon, []string{"fetch timeout"}},
		{"foreign command", func(m *manager) {
			m.queued = []map[string]any{{"uuid": commandUUID, "name": "whoami", "args": []string{}}}
		}, deadline, []string{"fetch wrong"}},
		{"result refused", func(m *manager) { m.wrong["POST /commands"] = unavailable }, deadline, []string{"answer refused"}},
		{"result lost", func(m *manager) { m.wrong["POST /commands"] = func(http.ResponseWriter, *http.Request) {} }, soon, []string{"result timeout"}},
		{"other result", func(m *manager) {
			m.wrong["GET /endpoints/{uuid}/commands/{id}"] = data(`{"completed":true,"stdout":"b3RoZXI="}`)
		}, deadline, []string{"result wrong"}},
		{"both ways", func(m *manager) {
			m.wrong["POST /logs"], m.wrong["POST /endpoints/{uuid}/command"] = unavailable, refuse
		}, deadline, []string{"command refused", "event refused"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			m := newManager(t)
			tc.prepare(m)
			r := start(t, m.config(t.TempDir(), tc.timeout))
			r.rounds(t, "failure", 1)
			r.stop()
			failed := r.samples(t, "nightjar_canary_step_failures_total")
			// A machine that stands still makes other steps fail in time.
			for _, want := range tc.want {
				if failed[want] == 0 {
					t.Errorf("failures %v, want %v", failed, tc.want)
				}
			}
			if tc.timeout == deadline && len(failed) != len(tc.want) {
				t.Errorf("failures %v, want %v", failed, tc.want)
			}
			if err := r.Ready(); err == nil || !strings.Contains(err.Error(), strings.Fields(tc.want[0])[0]+": ") || strings.Contains(err.Error(), operatorKey) {
				t.Errorf("readiness says %v", err)
			}
		})
	}
}

// A command that is not fetched is cancelled, and one of an earlier round that
// comes first is ended without harm to the next.
func TestCommandsDoNotPileUp(t *testing.T) {
	m := newManager(t)
	m.queued = []map[string]any{{"uuid": commandUUID[:35] + "9", "name": "nightjar-canary", "args": []string{"old"}}}
	start(t, m.config(t.TempDir(), deadline)).rounds(t, "success", 1)
	m.mu.Lock()
	if old := m.results[commandUUID[:35]+"9"]; old == nil || old["error"] == "" {
		t.Errorf("the old command has the result %v", old)
	}
	m.mu.Unlock()

	m = newManager(t)
	m.wrong["GET /commands"] = func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusForbidden) }
	start(t, m.config(t.TempDir(), 100*time.Millisecond)).rounds(t, "failure", 1)
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.cancelled) == 0 || m.cancelled[0] != m.queued[0]["uuid"] {
		t.Errorf("cancelled %v of %v", m.cancelled, m.queued)
	}
}

// An endpoint whose key cannot be kept is taken back.
func TestEndpointThatCannotBeKept(t *testing.T) {
	m, dir := newManager(t), t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "endpoint.json.new", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	r := start(t, m.config(dir, deadline))
	r.rounds(t, "failure", 2)
	r.stop()
	m.mu.Lock()
	defer m.mu.Unlock()
	if f := r.samples(t, "nightjar_canary_step_failures_total"); len(m.endpoints) != 0 || f["endpoint local"] < 2 {
		t.Errorf("endpoints %v, failures %v", m.endpoints, f)
	}
}

func TestKeyFile(t *testing.T) {
	m := newManager(t)
	cfg := m.config(t.TempDir(), deadline)
	cfg.AdminKey, cfg.AdminKeyFile = "", filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(cfg.AdminKeyFile, []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := start(t, cfg)
	r.rounds(t, "failure", 1)
	if f := r.samples(t, "nightjar_canary_step_failures_total"); f["endpoint refused"] == 0 {
		t.Errorf("failures %v", f)
	}
	if err := os.WriteFile(cfg.AdminKeyFile, []byte(operatorKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.rounds(t, "success", 1)
}

func TestUnusable(t *testing.T) {
	m := newManager(t)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(c *canary.Config){
		"admin-key": func(c *canary.Config) { c.AdminKey = "" },
		"admin-url": func(c *canary.Config) { c.AdminURL = "localhost:8001" },
		"agent-url": func(c *canary.Config) { c.AgentURL = "https://localhost:8000/logs" },
		"ca.pem":    func(c *canary.Config) { c.CAFile = ca },
	} {
		cfg := m.config(t.TempDir(), 0)
		cfg.Metrics = prometheus.NewRegistry()
		change(&cfg)
		if _, err := canary.New(cfg); !errors.Is(err, lifecycle.ErrUsage) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	cfg := m.config(t.TempDir(), 0)
	cfg.Metrics = prometheus.NewRegistry()
	if err := os.WriteFile(filepath.Join(cfg.DataDir, "endpoint.json"), []byte(`{"uuid":"x","key":"secret"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := canary.New(cfg); err == nil || errors.Is(err, lifecycle.ErrUsage) || !strings.Contains(err.Error(), "endpoint.json") || strings.Contains(err.Error(), "secret") {
		t.Errorf("broken endpoint.json: %v", err)
	}
}
