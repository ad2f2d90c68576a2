package canary_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
	canary "github.com/nightjar-edr/nightjar/services/canary/service"
)

const (
	operatorKey = "operator-key"
	firstUUID   = "00000000-0000-0000-0000-000000000001"
	commandUUID = "11111111-0000-0000-0000-000000000000"
)

// manager stands where a real one, which the end-to-end tests have, cannot be
// made to go wrong. It does what its routes say, unless wrong holds another
// handler for the route.
type manager struct {
	t        *testing.T
	own, all *bus.Bus
	server   *httptest.Server
	wrong    map[string]http.HandlerFunc
	// alter changes an alert before it is sent; false sends none.
	alter func(*message.Alert) bool

	mu        sync.Mutex
	endpoints []string
	rules     int
	line      []byte
	at        time.Time
	queued    []map[string]any
	results   map[string]map[string]any
	cancelled []string
}

func newManager(t *testing.T) *manager {
	t.Helper()
	m := &manager{t: t, wrong: map[string]http.HandlerFunc{}, alter: func(*message.Alert) bool { return true }, results: map[string]map[string]any{}}
	m.own, m.all = natstest.RestrictedTo(t, access.Canary, access.ForCanary())
	mux := http.NewServeMux()
	for route, h := range map[string]http.HandlerFunc{
		"PUT /endpoints":                        m.operator(m.create),
		"GET /endpoints/{uuid}":                 m.operator(m.get),
		"DELETE /endpoints/{uuid}":              m.operator(m.remove),
		"GET /rules":                            m.operator(m.listRules),
		"POST /rules":                           m.operator(m.addRule),
		"POST /logs":                            m.agent(m.logs),
		"GET /endpoints/{uuid}/alerts":          m.operator(m.alerts),
		"GET /endpoints/{uuid}/report":          m.operator(m.report),
		"POST /endpoints/{uuid}/command":        m.operator(m.queue),
		"GET /commands":                         m.agent(m.next),
		"POST /commands":                        m.agent(m.result),
		"GET /endpoints/{uuid}/commands/{id}":   m.operator(m.shown),
		"DELETE /endpoints/{uuid}/command/{id}": m.operator(m.cancel),
	} {
		mux.HandleFunc(route, func(w http.ResponseWriter, r *http.Request) {
			if other := m.wrong[route]; other != nil {
				other(w, r)
				return
			}
			h(w, r)
		})
	}
	m.server = httptest.NewServer(mux)
	t.Cleanup(m.server.Close)
	return m
}

func (m *manager) operator(h func(r *http.Request) (any, string)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Api-Key") != operatorKey {
			http.Error(w, "Not Authorized", http.StatusForbidden)
			return
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		data, problem := h(r)
		answer(w, data, problem)
	}
}

func answer(w http.ResponseWriter, data any, problem string) {
	_ = json.NewEncoder(w).Encode(map[string]any{"data": data, "message": "OK", "error": problem})
}

func (m *manager) agent(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		m.mu.Lock()
		defer m.mu.Unlock()
		uuid := m.last()
		if r.Header.Get("Uuid") != uuid || r.Header.Get("Api-Key") != "key-of-"+uuid || r.Header.Get("Hostname") != canary.DefaultHostname {
			http.Error(w, "Not Authorized", http.StatusForbidden)
			return
		}
		h(w, r)
	}
}

// last is the endpoint that was made last.
func (m *manager) last() string {
	if len(m.endpoints) == 0 {
		return ""
	}
	return m.endpoints[len(m.endpoints)-1]
}

func (m *manager) create(*http.Request) (any, string) {
	m.endpoints = append(m.endpoints, fmt.Sprintf("%s%d", firstUUID[:35], len(m.endpoints)+1))
	return map[string]string{"uuid": m.last(), "key": "key-of-" + m.last()}, ""
}

func (m *manager) get(r *http.Request) (any, string) {
	if uuid := r.PathValue("uuid"); uuid != m.last() {
		return nil, "Unknown endpoint: " + uuid
	}
	return map[string]string{"uuid": m.last()}, ""
}

func (m *manager) remove(r *http.Request) (any, string) {
	m.endpoints = m.endpoints[:len(m.endpoints)-1]
	return nil, ""
}

func (m *manager) listRules(r *http.Request) (any, string) {
	if r.URL.Query().Get("name") != "^"+canary.RuleName+"$" {
		m.t.Errorf("rules are asked for by %s", r.URL.RawQuery)
	}
	list := []any{}
	if m.rules > 0 {
		list = append(list, map[string]string{"Name": canary.RuleName})
	}
	return list, ""
}

func (m *manager) addRule(*http.Request) (any, string) {
	m.rules++
	return nil, ""
}

func (m *manager) logs(_ http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		m.t.Error(err)
	}
	m.line = []byte(strings.TrimSuffix(string(body), "\n"))
	info, err := event.Scan(m.line)
	if err != nil {
		m.t.Error(err)
	}
	m.at = info.Time
	a := &message.Alert{Endpoint: m.last(), Hostname: r.Header.Get("Hostname"), Received: time.Now(), Time: info.Time, Timed: true, Hash: event.HashOf(m.line),
		Signatures: []string{canary.RuleName}, Criticality: 1, Origin: message.OriginManager, Rules: []message.RuleInfo{{Name: canary.RuleName, Criticality: 1}}}
	send := m.alter(a)
	if a.Line, err = event.WithGeneInfo(m.line, &info, event.GeneInfo{Signature: a.Signatures, Criticality: 1}); err != nil {
		m.t.Error(err)
	}
	m.line = a.Line
	msg, err := a.Msg()
	if err != nil {
		m.t.Error(err)
	}
	if !send {
		return
	}
	if err := m.all.NC.PublishMsg(msg); err != nil {
		m.t.Error(err)
	}
}

func (m *manager) alerts(r *http.Request) (any, string) {
	q := r.URL.Query()
	start, err := time.Parse(time.RFC3339, q.Get("start"))
	if err != nil {
		m.t.Error(err)
	}
	stop, err := time.Parse(time.RFC3339, q.Get("stop"))
	if err != nil || m.at.Before(start) || !m.at.Before(stop) {
		m.t.Errorf("alerts are asked for by %s, the event is of %s", q, m.at)
	}
	return []json.RawMessage{m.line}, ""
}

func (m *manager) report(*http.Request) (any, string) {
	return map[string]any{"count-by-signature": map[string]int{canary.RuleName: 1}, "score": 1, "stop-time": m.at}, ""
}

func (m *manager) queue(r *http.Request) (any, string) {
	var body struct {
		Line string `json:"command-line"`
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		m.t.Error(err)
	}
	words := strings.Fields(body.Line)
	c := map[string]any{"uuid": fmt.Sprintf("%s%d", commandUUID[:35], len(m.queued)), "name": words[0], "args": words[1:]}
	m.queued = append(m.queued, c)
	return map[string]any{"uuid": m.last(), "command": c}, ""
}

func (m *manager) next(w http.ResponseWriter, _ *http.Request) {
	for _, c := range m.queued {
		if m.results[c["uuid"].(string)] == nil {
			_ = json.NewEncoder(w).Encode(c)
			return
		}
	}
	w.WriteHeader(http.StatusNoContent)
}

func (m *manager) result(_ http.ResponseWriter, r *http.Request) {
	var body map[string]any
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		m.t.Error(err)
	}
	body["completed"] = true
	m.results[body["uuid"].(string)] = body
}

func (m *manager) shown(r *http.Request) (any, string) {
	if c := m.results[r.PathValue("id")]; c != nil {
		return c, ""
	}
	return map[string]any{"completed": false}, ""
}

func (m *manager) cancel(r *http.Request) (any, string) {
	m.cancelled = append(m.cancelled, r.PathValue("id"))
	return nil, ""
}
