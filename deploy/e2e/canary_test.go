package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
)

// endpoints returns all endpoints in the order of their creation.
func (p *proc) endpoints() (list []endpoint) {
	p.t.Helper()
	if err := json.Unmarshal(p.data(http.MethodGet, "/endpoints", ""), &list); err != nil {
		p.t.Fatal(err)
	}
	return list
}

// canary runs a canary beside the services and takes its metrics for evidence:
// all of its steps succeed; without a rule-engine the steps fail that need one,
// and no others; it recovers by itself. What it does touches its own endpoint
// alone, which it keeps over a restart.
func (c *cluster) canary(t *testing.T) {
	here, door := c.on(t, 0), c.doors()[1]
	before := len(here.endpoints())
	s := c.add(access.Canary, "--admin-url", door.admin, "--agent-url", door.agent, "--api-ca", c.conf("ca.pem"), "--admin-key", adminKey, "--interval", "100ms", "--timeout", "1m")
	watch := &proc{t: t, ops: s.ops}
	rounds := func(result string) float64 {
		return watch.metric("nightjar_canary_rounds_total", `result="`+result+`"`)
	}
	succeeds := func(what string, more float64) {
		t.Helper()
		eventually(t, what+": alive", func() error { return answersOK(s.ops + "/healthz") })
		goal := rounds("success") + more
		eventually(t, what, func() error {
			if got := rounds("success"); got < goal {
				return fmt.Errorf("%g rounds, want %g", got, goal)
			}
			return answersOK(s.ops + "/readyz")
		})
	}
	succeeds("rounds", 3)
	if n := rounds("failure"); n != 0 {
		t.Errorf("%g rounds failed:\n%s", n, s.log())
	}
	for _, step := range []string{"endpoint", "rule", "listen", "event", "alert", "query", "score", "command", "fetch", "answer", "result"} {
		label := `step="` + step + `"`
		if n, at := watch.metric("nightjar_canary_step_duration_seconds_count", label), watch.metric("nightjar_canary_step_last_success_timestamp_seconds", label); n < 3 || at == 0 {
			t.Errorf("%s: %g successes, the last at %g", step, n, at)
		}
	}
	seen := watch.metric("nightjar_canary_step_duration_seconds_count", `step="query"`)
	list := here.endpoints()
	if len(list) != before+1 || list[before].Hostname != "nightjar-canary" {
		t.Fatalf("endpoints of the canary: %+v", list[before:])
	}
	me := list[before]
	if n := len(here.events(me, "alerts"+everything)); float64(n) < seen {
		t.Errorf("%d alerts of the canary, which has seen %g", n, seen)
	}

	s.terminate()
	s.args = append(s.args, "--timeout", "2s")
	s.run()
	succeeds("rounds after a restart", 1)
	if list = here.endpoints(); len(list) != before+1 || list[before].UUID != me.UUID {
		t.Errorf("endpoints after a restart: %+v", list[before:])
	}
	engines := c.of(access.Rules)
	for _, e := range engines {
		e.terminate()
	}
	eventually(t, "the steps fail that need a rule-engine, and no others", func() error {
		var state struct{ Canary string }
		if err := answersOK(s.ops + "/readyz"); err == nil || json.Unmarshal([]byte(err.Error()), &state) != nil {
			return fmt.Errorf("readiness: %w", err)
		}
		var failed []string
		for line := range strings.Lines(state.Canary) {
			step, _, _ := strings.Cut(line, ":")
			failed = append(failed, step)
		}
		if n := watch.metric("nightjar_canary_step_failures_total", `reason="timeout"`, `step="alert"`); n == 0 || !slices.Equal(failed, []string{"rule", "alert"}) {
			return fmt.Errorf("%s", state.Canary)
		}
		return answersOK(s.ops + "/healthz")
	})
	for _, e := range engines {
		e.run()
	}
	succeeds("rounds with a rule-engine", 2)

	here.data(http.MethodDelete, "/endpoints/"+me.UUID, "")
	eventually(t, "a new endpoint", func() error {
		if list := here.endpoints(); len(list) != before+1 || list[before].UUID == me.UUID {
			return fmt.Errorf("%d endpoints", len(list))
		}
		return nil
	})
	succeeds("rounds with a new endpoint", 2)
}
