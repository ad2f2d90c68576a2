package ruleengine

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/config"
	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
)

// writeFolder makes a folder of files.
func writeFolder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestFolderErrors(t *testing.T) {
	tests := map[string]struct {
		files map[string]string
		holds []string
	}{
		"does not compile": {
			map[string]string{"good.gen": rule("good", "g", 1, ""), "sub/bad.gen": rule("fine", "f", 1, "") + rule("broken", "(", 1, "")},
			[]string{"sub/bad.gen", `"broken"`, `$a: Image ~= '('`},
		},
		"not JSON":         {map[string]string{"bad.gene": "{"}, []string{"bad.gene", "JSON parsing"}},
		"two of a name":    {map[string]string{"a.gen": rule("r", "a", 1, ""), "b.gen": rule("r", "b", 1, "")}, []string{"a.gen", "b.gen", `"r"`}},
		"unknown template": {map[string]string{"a.gen": rule("r", "{{missing}}", 1, "")}, []string{"a.gen", "missing", `"r"`}},
		"bad template":     {map[string]string{"t.toml": "a = 3"}, []string{"t.toml", "a"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			cfg := r.config()
			cfg.RulesDir = writeFolder(t, tt.files)
			_, err := New(cfg)
			if !errors.Is(err, lifecycle.ErrUsage) {
				t.Fatalf("got %v, want an error of configuration", err)
			}
			for _, part := range tt.holds {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%v does not name %s", err, part)
				}
			}
		})
	}
	for _, dir := range []string{filepath.Join(t.TempDir(), "missing"), writeFile(t)} {
		r := newRig(t)
		cfg := r.config()
		cfg.RulesDir = dir
		if _, err := New(cfg); !errors.Is(err, lifecycle.ErrUsage) || !strings.Contains(err.Error(), dir) {
			t.Errorf("folder %s: %v", dir, err)
		}
	}
}

func writeFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFolderImport(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	pretty := "{\n  \"Name\": \"pretty\",\n  \"Meta\": {\"Events\": {\"Test\": []}, \"Criticality\": 3, \"Schema\": \"2.0.0\"},\n" +
		"  \"Matches\": [\"$a: Image ~= '{{word}}'\"],\n  \"Condition\": \"$a\"\n}\n\n"
	cfg.RulesDir = writeFolder(t, map[string]string{
		"words.toml": `word = '(?i:evil)'`, "more.tpl": "other: 'o'\n", "a.gen": pretty + rule("second", "s{{other}}", 1, ""),
		"deep/b.gene": rule("third", "third", 1, ""), "README.md": "no rule", ".hidden/c.gen": "{", "empty.gen": "",
	})
	x := r.start(cfg)
	if got := x.listed(""); !slices.Equal(got, []string{"pretty", "second", "third"}) {
		t.Fatalf("listed %q", got)
	}
	// What is done by API survives a restart with the same folder.
	if _, err := x.delete("third"); err != nil {
		t.Fatal(err)
	}
	x.mustAdd(true, rule("second", "changed", 1, ""))
	x.reload()
	x.mustAdd(false, rule("fourth", "f", 1, ""))
	revision := x.reload().Revision
	restart := func() {
		t.Helper()
		x.stop()
		cfg.Bus, cfg.Metrics = r.srv.Bus(t, access.Rules), prometheus.NewRegistry()
		x = r.start(cfg)
	}
	text := func(name string) string {
		t.Helper()
		page := call[message.RulesListReply](t, r.bus, message.RulesList, message.RulesListRequest{Name: "^" + name + "$"})
		if len(page.Rules) != 1 {
			t.Fatalf("%d rules %s", len(page.Rules), name)
		}
		return string(page.Rules[0])
	}
	restart()
	if got := x.listed(""); !slices.Equal(got, []string{"fourth", "pretty", "second"}) || !strings.Contains(text("second"), "changed") {
		t.Errorf("after a restart: listed %q", got)
	}
	if got := x.reload().Revision; got != revision {
		t.Errorf("the restart wrote revision %d after %d", got, revision)
	}
	// A changed file, here by its template, and a new one take effect; a
	// removed one does not.
	for name, content := range map[string]string{
		"words.toml": `word = '(?i:worse)'`, "deep/b.gene": rule("third", "new third", 1, ""), "a.gen": pretty,
	} {
		if err := os.WriteFile(filepath.Join(cfg.RulesDir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	restart()
	if got := x.listed(""); !slices.Equal(got, []string{"fourth", "pretty", "second", "third"}) {
		t.Errorf("after a change: listed %q", got)
	}
	for name, part := range map[string]string{"pretty": "worse", "second": "changed", "third": "new third"} {
		if got := text(name); !strings.Contains(got, part) {
			t.Errorf("%s is %s", name, got)
		}
	}
}

func TestContainersFolder(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.ContainersDir = writeFolder(t, map[string]string{"domains.list.txt": "Evil.example.com\r\n  b \n", "empty": ""})
	x := r.start(cfg)
	if got := r.stored("domains"); !slices.Equal(got, []string{"Evil.example.com", "  b "}) {
		t.Errorf("domains: %q", got)
	}
	if got := r.stored("empty"); len(got) != 0 {
		t.Errorf("empty: %q", got)
	}
	before, err := r.containers().GetInfo(t.Context(), "domains")
	if err != nil {
		t.Fatal(err)
	}
	x.stop()
	cfg.Bus, cfg.Metrics = r.srv.Bus(t, access.Rules), prometheus.NewRegistry()
	r.start(cfg)
	after, err := r.containers().GetInfo(t.Context(), "domains")
	if err != nil {
		t.Fatal(err)
	}
	if before.NUID != after.NUID {
		t.Error("a container that did not change was written again")
	}

	cfg.ContainersDir = writeFolder(t, map[string]string{"a.x": "", "a.y": ""})
	if _, err := New(cfg); !errors.Is(err, lifecycle.ErrUsage) || !strings.Contains(err.Error(), "a.x") {
		t.Errorf("two files of a container: %v", err)
	}
}

func TestUnusableFlags(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	natstest.UnusableFlags(t, Flags, []string{"--workers", "-1"}, []string{"--workers", "1025"}, []string{"--siem", "a,b c"},
		[]string{"--rules-dir", missing}, []string{"--rules-dir", writeFolder(t, map[string]string{"a.gen": "{"})},
		[]string{"--containers-dir", missing}, []string{"--containers-dir", writeFolder(t, map[string]string{"a.x": "", "a.y": ""})})
}

// What the check of the flags has read is what the service starts with.
func TestRuleFolderIsReadOnce(t *testing.T) {
	r := newRig(t)
	dir := writeFolder(t, map[string]string{"a.gen": rule("read", "w", 1, "")})
	fs := flag.NewFlagSet("rule-engine", flag.ContinueOnError)
	makeService := Flags(fs)
	if err := config.Parse(fs, []string{"--rules-dir", dir}); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	c, err := makeService(r.config().Env)
	if err != nil {
		t.Fatal(err)
	}
	s := c.(*Service)
	if len(s.imported.list) != 1 || s.imported.list[0].Name != "read" {
		t.Errorf("the service has %d rules of the folder", len(s.imported.list))
	}
	if err := s.db.Close(); err != nil {
		t.Error(err)
	}
}

func TestConfig(t *testing.T) {
	for _, name := range []string{"a b", "a.b", strings.Repeat("x", 33), "*"} {
		if _, err := New(Config{SIEMs: []string{name}}); !errors.Is(err, lifecycle.ErrUsage) {
			t.Errorf("siem %q: %v", name, err)
		}
	}
	if _, err := New(Config{Workers: -1}); !errors.Is(err, lifecycle.ErrUsage) {
		t.Errorf("workers: %v", err)
	}
}
