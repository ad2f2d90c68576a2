package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// ruleOf makes a rule that never matches by itself: its name is for marks of
// agents.
func ruleOf(name string, criticality int, technique, tactic string) string {
	attack := ""
	if technique != "" {
		attack = fmt.Sprintf(`"ATTACK":[{"ID":%q,"Tactic":%q,"Reference":""}],`, technique, tactic)
	}
	return fmt.Sprintf(`{"Name":%q,"Meta":{"EventIDs":[4242],"Channels":["none"],%s"Criticality":%d},"Matches":["$a: Never = 'x'"],"Condition":"$a"}`, name, attack, criticality)
}

// markedEvent makes an event that an agent has marked.
func markedEvent(n int, at time.Time, names ...string) []byte {
	list, err := json.Marshal(names)
	if err != nil {
		panic(err)
	}
	return fmt.Appendf(nil, `{"Event":{"EventData":{"N":"%d"},"GeneInfo":{"Signature":%s,"Criticality":7},"System":{"Channel":"Microsoft-Windows-Sysmon/Operational","Computer":"WS","EventID":"1","TimeCreated":{"SystemTime":"%s"}}}}`, n, list, at.UTC().Format(time.RFC3339Nano))
}

// reportIs waits until the report has so many alerts and compares members.
func (p *proc) reportIs(e endpoint, alerts int, want string) {
	p.t.Helper()
	var got map[string]json.RawMessage
	eventually(p.t, "the report", func() error {
		got = nil
		if err := json.Unmarshal(p.data(http.MethodGet, "/endpoints/"+e.UUID+"/report", ""), &got); err != nil {
			return err
		}
		if string(got["alert-count"]) != fmt.Sprint(alerts) {
			return fmt.Errorf("%s alerts, want %d", got["alert-count"], alerts)
		}
		return nil
	})
	var members map[string]json.RawMessage
	if err := json.Unmarshal([]byte(want), &members); err != nil {
		p.t.Fatal(err)
	}
	for k, v := range members {
		if string(got[k]) != string(v) {
			p.t.Errorf("%s is %s, want %s", k, got[k], v)
		}
	}
}

// TestReportOfNinetyNineAlerts gives the numbers of the report in the admin
// API's own documentation, to the last digit.
func TestReportOfNinetyNineAlerts(t *testing.T) {
	p := start(t, t.TempDir())
	var body strings.Builder
	rules := []struct {
		name        string
		criticality int
		count       int
		technique   string
		tactic      string
	}{
		{"StopSvchostAccess", 8, 70, "", ""}, {"NewAutorun", 5, 7, "T1060", "persistence"}, {"UnknownServices", 5, 6, "T1035", "Execution"},
		{"UntrustedDriverLoaded", 7, 4, "T1014", "Defense Evasion"}, {"ExecutableFileCreated", 7, 3, "", ""}, {"UntrustedService", 7, 3, "T1035", "Execution"},
		{"DefenderConfigChanged", 7, 2, "", ""}, {"ExecTimestomping", 9, 1, "", ""}, {"HeurPersistentRAT", 8, 1, "", ""}, {"HeurSpawnShell", 8, 1, "", ""},
	}
	for _, r := range rules {
		body.WriteString(ruleOf(r.name, r.criticality, r.technique, r.tactic) + "\n")
	}
	p.data(http.MethodPost, "/rules", body.String())
	e := p.enrol()
	first := time.Date(2021, 3, 3, 21, 34, 51, 376999300, time.UTC)
	last := time.Date(2021, 3, 3, 21, 51, 11, 692631200, time.UTC)
	// One event has two signatures: 100 signatures in 99 alerts.
	lines := [][]byte{markedEvent(0, first, "StopSvchostAccess", "NewAutorun")}
	for _, r := range rules {
		for range r.count {
			lines = append(lines, markedEvent(len(lines), first.Add(time.Duration(len(lines))*time.Second), r.name))
		}
	}
	lines[len(lines)-1] = markedEvent(len(lines), last, "HeurSpawnShell")
	p.mustPost(e, lines...)
	want := `{"identifier":"` + e.UUID + `","alert-count":99,"count-by-signature":{"DefenderConfigChanged":2,"ExecTimestomping":1,"ExecutableFileCreated":3,"HeurPersistentRAT":1,"HeurSpawnShell":1,"NewAutorun":8,"StopSvchostAccess":71,"UnknownServices":6,"UntrustedDriverLoaded":4,"UntrustedService":3},
	"techniques":["T1014","T1035","T1060"],"signature-count":100,"sum-alert-criticality":744,"avg-alert-criticality":7.51,"std-dev-alert-criticality":1.05,
	"sum-rule-criticality":747,"avg-signature-criticality":7.47,"std-dev-signature-criticality":1.05,"signature-diversity":100,"count-uniq-signatures":10,
	"signature-criticality-metric":70,"alert-criticality-metric":751,"score":821,
	"start-time":"2021-03-03T21:34:51.3769993Z","median-time":"2021-03-03T21:43:01.53481525Z","stop-time":"2021-03-03T21:51:11.6926312Z"}`
	p.reportIs(e, 99, want)
	p.data(http.MethodGet, "/rules/reload", "")
	p.kill()
	p.run()
	p.mustPost(e, lines...) // an agent that got no answer repeats itself
	p.reportIs(e, 99, want)
}

// TestReportWithSumsOfRules gives the second known report, then clears it.
func TestReportWithSumsOfRules(t *testing.T) {
	p := start(t, t.TempDir())
	p.data(http.MethodPost, "/rules", ruleOf("AddUser", 10, "", "")+ruleOf("AlternateExplicitCredentialUse", 4, "", "")+ruleOf("HeurSpawnShell", 5, "", ""))
	other, e := p.enrol(), p.enrol()
	at := time.Date(2026, 11, 23, 19, 32, 48, 832191538, time.UTC)
	p.mustPost(other, markedEvent(1, at, "HighlyPolymorphicCode", "NotAManagerRule"))
	p.reportIs(other, 1, `{"sum-alert-criticality":0,"std-dev-signature-criticality":0,"techniques":null,"tactics":null,"score":0}`)
	p.mustPost(e, markedEvent(20, at, "AddUser"), markedEvent(21, at.Add(10*time.Second), "AlternateExplicitCredentialUse"),
		markedEvent(22, at.Add(20*time.Second), "AlternateExplicitCredentialUse", "HeurSpawnShell"), markedEvent(23, at.Add(time.Minute), "AlternateExplicitCredentialUse", "AddUser"))
	p.reportIs(e, 4, `{"count-by-signature":{"AddUser":2,"AlternateExplicitCredentialUse":3,"HeurSpawnShell":1},"signature-count":6,"sum-alert-criticality":33,
	"avg-alert-criticality":8.25,"std-dev-alert-criticality":2.48,"sum-rule-criticality":37,"avg-signature-criticality":6.16,"std-dev-signature-criticality":2.73,
	"signature-diversity":60,"count-uniq-signatures":3,"signature-criticality-metric":18,"alert-criticality-metric":495,"score":513,
	"start-time":"2026-11-23T19:32:48.832191538Z","median-time":"2026-11-23T19:33:18.832191538Z","stop-time":"2026-11-23T19:33:48.832191538Z"}`)

	var all map[string]json.RawMessage
	if err := json.Unmarshal(p.data(http.MethodGet, "/endpoints/reports", ""), &all); err != nil || len(all) != 2 {
		t.Errorf("all reports: %v %v", all, err)
	}
	var cleared struct{ Score int }
	if err := json.Unmarshal(p.data(http.MethodDelete, "/endpoints/"+e.UUID+"/reports", ""), &cleared); err != nil || cleared.Score != 513 {
		t.Errorf("DELETE gave score %d, %v", cleared.Score, err)
	}
	gone := func() error {
		if r := p.data(http.MethodGet, "/endpoints/"+e.UUID+"/report", ""); string(r) != "null" {
			return errors.New(string(r))
		}
		return nil
	}
	if err := gone(); err != nil {
		t.Errorf("after DELETE: %v", err)
	}
	p.terminate()
	p.run()
	if err := gone(); err != nil {
		t.Errorf("after DELETE and a restart: %v", err)
	}
	p.mustPost(e, markedEvent(24, at.Add(2*time.Minute), "AddUser"))
	p.reportIs(e, 1, `{"avg-alert-criticality":10,"signature-diversity":20,"alert-criticality-metric":200,"score":210}`)
}
