package monitoring

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"
)

// readRuleTests reads a file of rule tests, strictly.
func readRuleTests(t *testing.T, file string) (tests ruleTests) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(&tests); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return tests
}

func ruleTestFiles(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("prometheus", "tests", "*.yml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no rule tests: %v", err)
	}
	return files
}

// The alerts fire when they are to, and only then.
func TestRules(t *testing.T) {
	for _, file := range ruleTestFiles(t) {
		tests := readRuleTests(t, file)
		var patterns []string
		for _, p := range tests.RuleFiles {
			patterns = append(patterns, filepath.Join(filepath.Dir(file), p))
		}
		groups := ruleGroups(t, patterns...)
		// As promtool does, those that are named first.
		slices.SortStableFunc(groups, func(a, b ruleGroup) int {
			return order(tests.GroupEvalOrder, a.Name) - order(tests.GroupEvalOrder, b.Name)
		})
		for _, test := range tests.Tests {
			t.Run(filepath.Base(file)+"/"+test.Name, func(t *testing.T) { test.run(t, groups, time.Duration(tests.EvaluationInterval)) })
		}
	}
}

func order(named []string, group string) int {
	if i := slices.Index(named, group); i >= 0 {
		return i
	}
	return len(named)
}

// Each alert has a case in which it fires and one in which it does not, a
// severity, a summary, and a section in the runbooks, which have none beside.
func TestAlertsAreWhole(t *testing.T) {
	fires, silent := map[string]bool{}, map[string]bool{}
	for _, file := range ruleTestFiles(t) {
		for _, test := range readRuleTests(t, file).Tests {
			for _, c := range test.AlertRuleTests {
				if len(c.ExpAlerts) > 0 {
					fires[c.Alertname] = true
				} else {
					silent[c.Alertname] = true
				}
			}
		}
	}
	runbooks, err := os.ReadFile(filepath.Join(root, "docs", "operations", "runbooks.md"))
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]bool{}
	for line := range strings.Lines(string(runbooks)) {
		if title, ok := strings.CutPrefix(line, "### "); ok {
			sections[strings.TrimSpace(title)] = true
		}
	}
	for _, g := range ruleGroups(t, rulesPattern) {
		for _, r := range g.Rules {
			if r.Alert == "" {
				continue
			}
			if !fires[r.Alert] || !silent[r.Alert] {
				t.Errorf("%s: tested firing %v, silent %v", r.Alert, fires[r.Alert], silent[r.Alert])
			}
			if !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) || r.Annotations["summary"] == "" {
				t.Errorf("%s: severity %q, summary %q", r.Alert, r.Labels["severity"], r.Annotations["summary"])
			}
			if want := "docs/operations/runbooks.md#" + strings.ToLower(r.Alert); r.Annotations["runbook_url"] != want {
				t.Errorf("%s: runbook_url %q, want %q", r.Alert, r.Annotations["runbook_url"], want)
			}
			if !sections[r.Alert] {
				t.Errorf("%s has no runbook", r.Alert)
			}
			delete(sections, r.Alert)
		}
	}
	for name := range sections {
		t.Errorf("the runbook %s is for no alert", name)
	}
}
