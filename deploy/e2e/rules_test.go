package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// agentRules returns the rules that an agent gets, by name, and demands that
// their hash is the one it is told. modern is with the header names of v1.8.
func (p *proc) agentRules(e endpoint, modern bool) map[string]string {
	p.t.Helper()
	get := func(path string) string {
		req := p.request(e, http.MethodGet, path, nil, false)
		if modern {
			req.Header = http.Header{"X-Endpoint-Uuid": {e.UUID}, "X-Api-Key": {e.Key}, "X-Endpoint-Hostname": {req.Header.Get("Hostname")}}
		}
		resp, err := p.client.Do(req)
		if err != nil {
			p.t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		text, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			p.t.Fatalf("GET %s: %s %s %v", path, resp.Status, text, err)
		}
		return string(text)
	}
	text := get("/rules")
	if sum := sha256.Sum256([]byte(text)); get("/rules/sha256") != hex.EncodeToString(sum[:]) {
		p.t.Errorf("modern %t: the hash is not that of the rules", modern)
	}
	rules := map[string]string{}
	for line := range strings.Lines(text) {
		var named struct{ Name string }
		if err := json.Unmarshal([]byte(line), &named); err != nil {
			p.t.Fatalf("rule %s: %v", line, err)
		}
		rules[named.Name] = line
	}
	return rules
}

// TestRuleForms gives rules of both forms to the manager in one request, and
// has the operator, agents of either dialect and the events see them as they
// should, through updates, deletions and a crash.
func TestRuleForms(t *testing.T) {
	const body = `"Matches":["$i: Image ~= 'evil'"],"Condition":"$i"}`
	const (
		two    = `{"Name":"Two","Meta":{"EventIDs":[1,3],"Channels":["A","B"],"Criticality":4},` + body
		anyone = `{"Name":"Any","Meta":{"Criticality":2},` + body
		modern = `{"Name":"New","Meta":{"Events":{"A":[3],"C":[]},"Criticality":6,"Schema":"2.0.0"},` + body
	)
	p := start(t, t.TempDir(), "--tls", "off")
	e := p.enrol()
	refused := func(method, path, body, want string) {
		t.Helper()
		if a, err := p.ask(method, path, body); err != nil || a.Message != "NOK" || !strings.Contains(a.Error, want) {
			t.Errorf("%s %s: %+v, %v, want %q", method, path, a, err, want)
		}
	}
	p.data(http.MethodPost, "/rules", two+"\n"+anyone+modern)
	refused(http.MethodPost, "/rules", strings.Replace(two, "Two", "Other", 1)+two, `Rule "Two" already exists`)
	refused(http.MethodPost, "/rules?update=true", strings.Replace(two, "evil", "(", 1), `"Two"`)

	check := func(when string, want map[string][3]string) {
		t.Helper()
		var list []json.RawMessage
		if err := json.Unmarshal(p.data(http.MethodGet, "/rules", ""), &list); err != nil {
			t.Fatal(err)
		}
		listed := map[string]string{}
		for _, raw := range list {
			var named struct{ Name string }
			if err := json.Unmarshal(raw, &named); err != nil {
				t.Fatal(err)
			}
			listed[named.Name] = string(raw)
		}
		for i, got := range []map[string]string{listed, p.agentRules(e, false), p.agentRules(e, true)} {
			who := []string{"the operator", "an agent of gene v1", "an agent of gene v2"}[i]
			if len(got) != len(want) {
				t.Errorf("%s: %s gets %d rules, want %d", when, who, len(got), len(want))
			}
			for name, forms := range want {
				if !strings.Contains(got[name], forms[i]) {
					t.Errorf("%s: %s gets %s, want %s", when, who, got[name], forms[i])
				}
			}
		}
	}
	all := map[string][3]string{
		"Two": {`"EventIDs":[1,3],"Channels":["A","B"]`, `"EventIDs":[1,3],"Channels":["A","B"]`, `"Events":{"A":[1,3],"B":[1,3]}`},
		"Any": {`"EventIDs":null,"Channels":null`, `"EventIDs":null,"Channels":null`, `"Events":{}`},
		"New": {`"Events":{"A":[3],"C":[]}`, `"EventIDs":[],"Channels":["A","C"]`, `"Events":{"A":[3],"C":[]}`},
	}
	check("at first", all)

	sent := 0
	detected := func(channel string, id int, want string) {
		t.Helper()
		at := time.Now()
		p.mustPost(e, fmt.Appendf(nil, `{"Event":{"EventData":{"Image":"evil.exe"},"System":{"Channel":%q,"EventID":"%d","TimeCreated":{"SystemTime":"%s"}}}}`, channel, id, at.UTC().Format(time.RFC3339Nano)))
		sent++
		eventually(t, fmt.Sprintf("detection in %s %d", channel, id), func() error {
			alerts := p.events(e, "alerts"+everything)
			if len(alerts) != sent {
				return fmt.Errorf("%d alerts, want %d", len(alerts), sent)
			}
			var last struct {
				Event struct{ GeneInfo struct{ Signature []string } }
			}
			if err := json.Unmarshal(alerts[sent-1], &last); err != nil {
				return err
			}
			if got := strings.Join(last.Event.GeneInfo.Signature, " "); got != want {
				return fmt.Errorf("signatures %s, want %s", got, want)
			}
			return nil
		})
	}
	detected("A", 1, "Any Two")
	detected("B", 3, "Any Two")
	detected("A", 3, "Any New Two")
	detected("C", 7, "Any New")
	detected("D", 1, "Any")

	// Staged is what exists already; it is seen with the reload.
	p.data(http.MethodPost, "/rules?update=true", strings.Replace(two, `"A","B"`, `"D"`, 1))
	p.data(http.MethodDelete, "/rules?name=Any", "")
	p.data(http.MethodGet, "/rules/save", "")
	check("staged", all)
	p.kill()
	p.run()
	check("staged, after a crash", all)
	detected("B", 1, "Any Two")
	p.data(http.MethodGet, "/rules/reload", "")
	delete(all, "Any")
	all["Two"] = [3]string{`"EventIDs":[1,3],"Channels":["D"]`, `"EventIDs":[1,3],"Channels":["D"]`, `"Events":{"D":[1,3]}`}
	check("reloaded", all)
	detected("D", 3, "Two")
	refused(http.MethodDelete, "/rules?name=Any", "", `No such rule "Any"`)
	p.kill()
	p.run()
	check("after another crash", all)
	detected("C", 1, "New")
}
