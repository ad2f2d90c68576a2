package ruleengine

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
)

func nameOf(t *testing.T, raw json.RawMessage) string {
	t.Helper()
	var r struct{ Name string }
	if err := json.Unmarshal(raw, &r); err != nil {
		t.Fatal(err)
	}
	return r.Name
}

// agentRules fetches the text for agents in parts and checks its hash.
func agentRules(t *testing.T, b *bus.Bus, v2 bool) (string, message.RulesAgentReply) {
	t.Helper()
	var text []byte
	for {
		part := call[message.RulesAgentReply](t, b, message.RulesAgent, message.RulesAgentRequest{V2: v2, Offset: len(text)})
		var err error
		if text, err = message.Decompress(text, part.Text); err != nil {
			t.Fatal(err)
		}
		if len(text) < part.Size {
			continue
		}
		if sum := sha256.Sum256(text); part.SHA256 != hex.EncodeToString(sum[:]) || part.Size != len(text) {
			t.Errorf("hash %s and size %d are not those of the text", part.SHA256, part.Size)
		}
		return string(text), part
	}
}

func TestRulesLifecycle(t *testing.T) {
	r := newRig(t)
	x := r.start(r.config())
	if text, _ := agentRules(t, r.bus, false); text != "" {
		t.Errorf("text of no rules is %q", text)
	}

	if reply := x.mustAdd(false, rule("b", "evil", 3, "")+rule("a", "bad", 2, "")+rule("off", "x", 1, `,"Disable":true`)); reply.Staged || reply.Revision == 0 {
		t.Errorf("new rules: %+v", reply)
	}
	if got := x.listed(""); !slices.Equal(got, []string{"a", "b", "off"}) {
		t.Errorf("listed %q", got)
	}
	count := func(want int) {
		t.Helper()
		if got := call[message.RulesCountReply](t, r.bus, message.RulesCount, struct{}{}); got.Count != want {
			t.Errorf("count %d, want %d", got.Count, want)
		}
	}
	count(2)

	_, err := x.add(false, rule("c", "c", 1, "")+rule("a", "again", 1, ""))
	wantFault(t, err, fault.Conflict, `Error loading rule: Rule "a" already exists`)
	_, err = x.add(false, rule("c", "c", 1, "")+rule("d", "(", 1, ""))
	wantFault(t, err, fault.Invalid, `Error loading rule: Failed to compile`)
	if !strings.Contains(err.Error(), `"d"`) || !strings.Contains(err.Error(), `$a: Image ~= '('`) {
		t.Errorf("%v names not rule and statement", err)
	}
	for _, body := range []string{"", "{}", "[]", `{"Name":"x"`} {
		_, err = x.add(true, body)
		wantFault(t, err, fault.Invalid, loadError)
	}
	if got := x.listed(""); !slices.Equal(got, []string{"a", "b", "off"}) {
		t.Errorf("after refused bodies: listed %q", got)
	}

	// An update is staged, what is new beside it is live; with only new names
	// nothing is staged.
	if reply := x.mustAdd(true, rule("c", "c", 1, "")); reply.Staged {
		t.Error("a new rule was staged")
	}
	if reply := x.mustAdd(true, rule("a", "worse", 4, "")+rule("n", "n", 1, "")); !reply.Staged {
		t.Error("an update was not staged")
	}
	text := func(name string) string {
		t.Helper()
		page := call[message.RulesListReply](t, r.bus, message.RulesList, message.RulesListRequest{Name: "^" + name + "$"})
		if len(page.Rules) != 1 {
			t.Fatalf("%d rules %s", len(page.Rules), name)
		}
		return string(page.Rules[0])
	}
	if got := text("a"); !strings.Contains(got, "bad") {
		t.Errorf("the listing shows what is staged: %s", got)
	}
	count(4)

	// Two deletes both hold, a third of the same name succeeds as well.
	for _, name := range []string{"b", "c", "b"} {
		if reply, err := x.delete(name); err != nil || !reply.Staged {
			t.Errorf("delete %s: %+v, %v", name, reply, err)
		}
	}
	_, err = x.delete("zz")
	wantFault(t, err, fault.NotFound, `No such rule "zz", doing nothing`)
	_, err = x.add(false, rule("b", "b", 1, ""))
	wantFault(t, err, fault.Conflict, `already exists`)

	// Saving undoes nothing, and staged changes survive a restart.
	if reply := call[message.RulesChangeReply](t, r.bus, message.RulesSave, struct{}{}); !reply.Staged {
		t.Error("save forgot what is staged")
	}
	x.stop()
	x = r.start(r.config())
	count(4)
	if reply := x.reload(); reply.Count != 2 {
		t.Errorf("count after reload %d", reply.Count)
	}
	if got := x.listed(""); !slices.Equal(got, []string{"a", "n", "off"}) {
		t.Errorf("after reload: listed %q", got)
	}
	if got := text("a"); !strings.Contains(got, "worse") {
		t.Errorf("after reload: %s", got)
	}
	_, err = x.delete("b")
	wantFault(t, err, fault.NotFound, `No such rule "b"`)
	before := x.reload()
	if after := x.reload(); before != after {
		t.Errorf("a reload of nothing: %+v, then %+v", before, after)
	}

	// An update after a delete cancels it, and the other way round.
	mustDelete := func(name string) {
		t.Helper()
		if _, err := x.delete(name); err != nil {
			t.Fatal(err)
		}
	}
	mustDelete("a")
	x.mustAdd(true, rule("a", "back", 1, ""))
	x.mustAdd(true, rule("n", "n2", 1, ""))
	mustDelete("n")
	x.reload()
	if got := x.listed(""); !slices.Equal(got, []string{"a", "off"}) || !strings.Contains(text("a"), "back") {
		t.Errorf("listed %q", got)
	}
}

func TestRulesList(t *testing.T) {
	r := newRig(t)
	x := r.start(r.config())
	big := strings.Repeat("x", 200<<10)
	var body strings.Builder
	var want []string
	for i := range 12 {
		name := fmt.Sprintf("rule %02d", i)
		want = append(want, name)
		body.WriteString(strings.Replace(rule(name, "w", 1, ""), `["t"]`, `["`+big+`"]`, 1))
	}
	x.mustAdd(false, body.String())
	if got := x.listed(""); !slices.Equal(got, want) {
		t.Errorf("listed %q", got)
	}
	page := call[message.RulesListReply](t, r.bus, message.RulesList, message.RulesListRequest{})
	if page.Next == "" || len(page.Rules) >= len(want) {
		t.Errorf("%d rules of 200 KiB on one page", len(page.Rules))
	}
	if got := x.listed("e 0[37]"); !slices.Equal(got, []string{"rule 03", "rule 07"}) {
		t.Errorf("pattern finds %q", got)
	}
	if got := x.listed("nothing"); got != nil {
		t.Errorf("pattern finds %q", got)
	}
	_, err := bus.Call[message.RulesListReply](t.Context(), r.bus, message.RulesList, message.RulesListRequest{Name: "a(b"})
	wantFault(t, err, fault.Invalid, `"a(b"`)
	_, err = bus.Call[message.RulesListReply](t.Context(), r.bus, message.RulesList, message.RulesListRequest{Name: strings.Repeat("a", maxPattern+1)})
	wantFault(t, err, fault.Invalid, "longer")
}

func TestRulesForAgents(t *testing.T) {
	r := newRig(t)
	x := r.start(r.config())
	v1 := `{"Name":"v1","Meta":{"EventIDs":[1,2],"Channels":["Test"],"Criticality":2},"Matches":["$a: Image = 'a<b'"],"Condition":"$a"}`
	x.mustAdd(false, rule("z", "z", 1, "")+v1+rule("off", "o", 1, `,"Disable":true`)+rule("filter", "f", 0, `,"Filter":true`))
	old, first := agentRules(t, r.bus, false)
	modern, _ := agentRules(t, r.bus, true)
	check := func(form, text, holds string) {
		t.Helper()
		lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
		if len(lines) != 3 {
			t.Fatalf("%s: %d lines", form, len(lines))
		}
		for i, name := range []string{"filter", "v1", "z"} {
			if got := nameOf(t, json.RawMessage(lines[i])); got != name || !strings.Contains(lines[i], holds) {
				t.Errorf("%s: line %d is %s", form, i, lines[i])
			}
		}
	}
	check("v1", old, `"EventIDs":`)
	check("v2", modern, `"Schema":"2.0.0"`)
	if !strings.Contains(old, `'a\u003cb'`) {
		t.Error("the text is not escaped as it is listed")
	}

	// A staged update changes nothing for agents, a new rule does at once.
	x.mustAdd(true, rule("z", "other", 1, ""))
	if same, reply := agentRules(t, r.bus, false); same != old || reply.SHA256 != first.SHA256 {
		t.Error("a staged update reached agents")
	}
	x.mustAdd(false, rule("y", "y", 1, ""))
	if _, reply := agentRules(t, r.bus, false); reply.SHA256 == first.SHA256 || reply.Revision <= first.Revision {
		t.Error("a new rule did not reach agents")
	}
	_, err := bus.Call[message.RulesAgentReply](t.Context(), r.bus, message.RulesAgent, message.RulesAgentRequest{Offset: 1 << 30})
	wantFault(t, err, fault.Invalid, "offset")
}

func TestReplicasChangeRulesAtOnce(t *testing.T) {
	r := newRig(t)
	x, y := r.start(r.config()), r.start(r.config())
	const each = 8
	errs := make(chan error, 2*each)
	for i := range 2 * each {
		go func() {
			_, err := x.add(false, rule(fmt.Sprintf("r%02d", i), "w", 1, ""))
			errs <- err
		}()
	}
	for range 2 * each {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	// Whichever replica answers, it has seen every change.
	for range 4 {
		if got := len(x.listed("")); got != 2*each {
			t.Errorf("listed %d rules", got)
		}
	}
	eventually(t, func() error {
		if a, b := x.s.rules.current.Load(), y.s.rules.current.Load(); a.revision != b.revision || b.set.Count() != 2*each {
			return fmt.Errorf("revisions %d and %d, %d rules", a.revision, b.revision, b.set.Count())
		}
		return nil
	})
}

func TestContainerArrives(t *testing.T) {
	r := newRig(t)
	x := r.start(r.config())
	x.mustAdd(false, `{"Name":"listed domain","Meta":{"Events":{"Test":[]},"Criticality":5,"Schema":"2.0.0"},`+
		`"Matches":["$c: extract('(?P<d>[a-z.]+)', Image) in domains"],"Condition":"$c"}`)
	if got := x.value("nightjar_rule_engine_rules_waiting"); got != 1 {
		t.Errorf("%v rules wait", got)
	}
	if got := call[message.RulesCountReply](t, r.bus, message.RulesCount, struct{}{}); got.Count != 1 {
		t.Errorf("count %d", got.Count)
	}
	r.send(endpointA, event4(1, "evil.example.com"))
	if got := r.alerts(); len(got) != 0 {
		t.Fatalf("%d alerts without the container", len(got))
	}
	if _, err := r.containers().PutBytes(t.Context(), "domains", message.EncodeContainer([]string{"EVIL.example.com", "b"})); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if n := x.value("nightjar_rule_engine_rules_waiting"); n != 0 {
			return fmt.Errorf("%v rules wait", n)
		}
		return nil
	})
	r.send(endpointA, event4(2, "evil.example.com"))
	if got := r.alerts(); len(got) != 1 {
		t.Fatalf("%d alerts with the container", len(got))
	}
	if err := r.containers().Delete(t.Context(), "domains"); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if n := x.value("nightjar_rule_engine_rules_waiting"); n != 1 {
			return fmt.Errorf("%v rules wait", n)
		}
		return nil
	})
}
