package ruleengine

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

// Another manager's folders are imported beside the own ones, which are
// preferred; each folder's rules use its own templates.
func TestOtherFolders(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.RulesDir = writeFolder(t, map[string]string{"a.gen": rule("own", "{{word}}", 1, "") + rule("both", "mine", 1, ""), "w.toml": `word = 'here'`})
	cfg.OtherRulesDir = writeFolder(t, map[string]string{"b.gen": rule("both", "theirs", 1, "") + rule("its", "{{word}}", 1, ""), "w.toml": `word = 'there'`})
	cfg.ContainersDir = writeFolder(t, map[string]string{"both.txt": "mine\n"})
	cfg.OtherContainersDir = writeFolder(t, map[string]string{"both.list": "theirs\n", "its": "x\n"})
	x := r.start(cfg)
	check := func(want map[string]string) {
		t.Helper()
		page := call[message.RulesListReply](t, r.bus, message.RulesList, message.RulesListRequest{})
		if len(page.Rules) != len(want) {
			t.Fatalf("listed %q", page.Rules)
		}
		for name, word := range want {
			found := slices.ContainsFunc(page.Rules, func(raw json.RawMessage) bool {
				return strings.Contains(string(raw), `"`+name+`"`) && strings.Contains(string(raw), `'`+word+`'`)
			})
			if !found {
				t.Errorf("no rule %s with %s in %s", name, word, page.Rules)
			}
		}
	}
	check(map[string]string{"own": "here", "both": "mine", "its": "there"})
	for name, want := range map[string]string{"both": "mine", "its": "x"} {
		content, err := r.containers().GetBytes(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if got := message.DecodeContainer(content); !slices.Equal(got, []string{want}) {
			t.Errorf("container %s is %q", name, got)
		}
	}
	if _, err := x.delete("its"); err != nil {
		t.Fatal(err)
	}
	revision := x.reload().Revision
	x.stop()
	cfg.Bus, cfg.Metrics = r.srv.Bus(t, access.Rules), prometheus.NewRegistry()
	x = r.start(cfg)
	check(map[string]string{"own": "here", "both": "mine"})
	if got := x.reload().Revision; got != revision {
		t.Errorf("the restart wrote revision %d after %d", got, revision)
	}
}

func TestOtherFoldersAlone(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.OtherRulesDir = writeFolder(t, map[string]string{"a.gen": rule("its", "w", 1, "")})
	cfg.OtherContainersDir = filepath.Join(t.TempDir(), "missing")
	if got := r.start(cfg).listed(""); !slices.Equal(got, []string{"its"}) {
		t.Errorf("listed %q", got)
	}
}

func TestOtherFolderErrors(t *testing.T) {
	r := newRig(t)
	t.Run("missing counts as empty", func(t *testing.T) {
		cfg := r.config()
		cfg.OtherRulesDir = filepath.Join(t.TempDir(), "missing")
		if got := r.start(cfg).listed(""); len(got) != 0 {
			t.Errorf("listed %q", got)
		}
	})
	for name, change := range map[string]func(*Config){
		"file for rules":      func(c *Config) { c.OtherRulesDir = writeFile(t) },
		"file for containers": func(c *Config) { c.OtherContainersDir = writeFile(t) },
		"broken rule":         func(c *Config) { c.OtherRulesDir = writeFolder(t, map[string]string{"a.gen": rule("r", "(", 1, "")}) },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := r.config()
			change(&cfg)
			if _, err := New(cfg); !errors.Is(err, lifecycle.ErrUsage) || !strings.Contains(err.Error(), cfg.OtherRulesDir+cfg.OtherContainersDir) {
				t.Errorf("got %v, want an error of configuration that names the folder", err)
			}
		})
	}
}
