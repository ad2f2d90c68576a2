package samples

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

type rule struct {
	Name string
	Meta struct {
		Events   map[string][]int
		EventIDs []int
		Channels []string
		ATTACK   []struct {
			ID        string
			Tactic    string
			Reference string
		}
		Criticality *int
		Filter      bool
		Schema      string
	}
	Matches   []string
	Condition string
	file      string
}

func (r rule) isV1() bool { return r.Meta.Schema == "" }

func readRules(t *testing.T) []rule {
	t.Helper()
	names, err := fs.Glob(Rules(), "*.gen")
	if err != nil {
		t.Fatal(err)
	}
	var rules []rule
	for _, name := range names {
		f, err := Rules().Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		dec := json.NewDecoder(f)
		for {
			r := rule{file: name}
			err := dec.Decode(&r)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			rules = append(rules, r)
		}
	}
	if len(rules) == 0 {
		t.Fatal("no rules")
	}
	return rules
}

var (
	attackID = regexp.MustCompile(`^T\d{4}(\.\d{3})?$`)
	operand  = regexp.MustCompile(`\$\w+`)
	template = regexp.MustCompile(`\{\{([^}]*)\}\}`)
	tactics  = []string{
		"reconnaissance", "resource-development", "initial-access", "execution", "persistence",
		"privilege-escalation", "stealth", "defense-impairment", "credential-access", "discovery",
		"lateral-movement", "collection", "command-and-control", "exfiltration", "impact",
	}
)

func TestRules(t *testing.T) {
	seen := map[string]string{}
	for _, r := range readRules(t) {
		t.Run(r.Name, func(t *testing.T) {
			if r.Name == "" {
				t.Fatalf("a rule of %s has no name", r.file)
			}
			if other, dup := seen[r.Name]; dup {
				t.Errorf("in %s and in %s", other, r.file)
			}
			seen[r.Name] = r.file

			if r.Meta.Criticality == nil || *r.Meta.Criticality < 0 || *r.Meta.Criticality > 10 {
				t.Error("Criticality is not a number from 0 to 10")
			}
			checkEvents(t, r)
			if !r.Meta.Filter {
				checkAttack(t, r)
			}
			checkOperands(t, r)
		})
	}
}

func checkEvents(t *testing.T, r rule) {
	t.Helper()
	switch {
	case r.isV1():
		if len(r.Meta.Events) > 0 || len(r.Meta.Channels) != 1 || len(r.Meta.EventIDs) == 0 {
			t.Error("a rule of gene v1 form names one channel and its event ids")
		}
	case r.Meta.Schema != "2.0.0" || len(r.Meta.Events) == 0 || len(r.Meta.EventIDs)+len(r.Meta.Channels) > 0:
		t.Error("a rule of gene v2 form has Schema 2.0.0 and names its channels and event ids in Events")
	}
}

func checkAttack(t *testing.T, r rule) {
	t.Helper()
	if len(r.Meta.ATTACK) == 0 {
		t.Error("no ATT&CK technique")
	}
	for _, a := range r.Meta.ATTACK {
		if !attackID.MatchString(a.ID) {
			t.Errorf("%q is no ATT&CK technique", a.ID)
		}
		if !slices.Contains(tactics, a.Tactic) {
			t.Errorf("%q is no ATT&CK tactic", a.Tactic)
		}
		want := "https://attack.mitre.org/techniques/" + strings.ReplaceAll(a.ID, ".", "/") + "/"
		if a.Reference != want {
			t.Errorf("Reference of %s is %q, want %q", a.ID, a.Reference, want)
		}
	}
}

func checkOperands(t *testing.T, r rule) {
	t.Helper()
	var defined []string
	for _, m := range r.Matches {
		defined = append(defined, operand.FindString(m))
	}
	used := operand.FindAllString(r.Condition, -1)
	slices.Sort(defined)
	slices.Sort(used)
	if !slices.Equal(defined, slices.Compact(used)) {
		t.Errorf("Matches define %v, Condition uses %v", defined, used)
	}
}

func TestRulesCoverForms(t *testing.T) {
	bySeverity := map[string]int{}
	var v1, filters, detecting int
	for _, r := range readRules(t) {
		if r.isV1() {
			v1++
		}
		if r.Meta.Filter {
			filters++
			continue
		}
		detecting++
		bySeverity[severity(*r.Meta.Criticality)]++
	}
	if v1 != 1 || filters != 1 {
		t.Errorf("%d rules of gene v1 form and %d filter rules, want one of each", v1, filters)
	}
	if detecting < 14 {
		t.Errorf("%d detecting rules, want 14 at least", detecting)
	}
	for _, s := range []string{"info", "low", "medium", "high", "critical"} {
		if bySeverity[s] == 0 {
			t.Errorf("no rule of severity %s", s)
		}
	}
}

func severity(criticality int) string {
	switch {
	case criticality == 0:
		return "info"
	case criticality <= 3:
		return "low"
	case criticality <= 6:
		return "medium"
	case criticality <= 8:
		return "high"
	default:
		return "critical"
	}
}

func TestTemplates(t *testing.T) {
	data, err := fs.ReadFile(Rules(), "templates.toml")
	if err != nil {
		t.Fatal(err)
	}
	definition := regexp.MustCompile(`^([\w-]+)\s*=\s*'([^']+)'$`)
	users := map[string]int{}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		m := definition.FindStringSubmatch(line)
		if m == nil {
			t.Errorf("not a template: %q", line)
			continue
		}
		if _, err := regexp.Compile(m[2]); err != nil {
			t.Errorf("template %s: %v", m[1], err)
		}
		users[m[1]] = 0
	}

	rulesWith := map[string]bool{}
	for _, r := range readRules(t) {
		for _, match := range r.Matches {
			for _, m := range template.FindAllStringSubmatch(match, -1) {
				if _, ok := users[m[1]]; !ok {
					t.Errorf("rule %s uses the unknown template %q", r.Name, m[1])
				}
				users[m[1]]++
				rulesWith[r.Name] = true
			}
		}
	}
	for name, n := range users {
		if n == 0 {
			t.Errorf("no rule uses the template %q", name)
		}
	}
	if len(rulesWith) < 2 {
		t.Errorf("%d rules use a template, want two at least", len(rulesWith))
	}
}

func TestRulesFS(t *testing.T) {
	if err := fstest.TestFS(Rules(), "templates.toml", "execution.gen", "archive-v1.gen"); err != nil {
		t.Fatal(err)
	}
}

func TestWriteRules(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "there", "yet")
	if err := WriteRules(dir); err != nil {
		t.Fatal(err)
	}
	own, changed := filepath.Join(dir, "own.gen"), filepath.Join(dir, "execution.gen")
	for _, name := range []string{own, changed} {
		if err := os.WriteFile(name, []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := WriteRules(dir); err != nil {
		t.Fatalf("into an existing folder: %v", err)
	}
	if got, err := os.ReadFile(own); err != nil || string(got) != "mine" {
		t.Errorf("a file that is none of ours became %q, %v", got, err)
	}

	entries, err := fs.ReadDir(Rules(), ".")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		want, err := fs.ReadFile(Rules(), entry.Name())
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != string(want) {
			t.Errorf("%s differs from what is shipped", entry.Name())
		}
	}
}

func TestWriteRulesError(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var pathErr *fs.PathError
	if err := WriteRules(filepath.Join(file, "rules")); !errors.As(err, &pathErr) {
		t.Errorf("below a file: got %v, want a path error", err)
	}
}
