package gateway

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

// Operators that are taken over may use the API with the keys they have, and
// what happens to them afterwards outlives every start.
func TestTakeOverOperators(t *testing.T) {
	list := []Operator{{"lena", "her key"}, {"jo@example.com", "jo's key"}, {"admin", "the old admin's key"}}
	r := newRig(t, func(c *Config) {
		c.AdminKey, c.Operators = "", list
		c.OnAdminKey = func(string) { t.Error("a key was generated although there are operators") }
	})
	want := map[string]int{"her key": 200, "jo's key": 200, "the old admin's key": 200, "": 403}
	check := func(when string) {
		t.Helper()
		for key, code := range want {
			if got := r.status(key); got != code {
				t.Errorf("%s: %q is answered with %d, want %d", when, key, got, code)
			}
		}
	}
	check("at first")
	if who, _ := r.svc.operators.identify("jo's key"); who != "jo@example.com" {
		t.Errorf("identified as %q", who)
	}
	written := r.messages("KV_" + stream.Access)
	for _, m := range written {
		for _, op := range list {
			if strings.Contains(string(m.Data), op.Key) {
				t.Errorf("the key of %s itself is stored", op.Identifier)
			}
		}
	}
	r.restart()
	check("after a restart")
	if again := r.messages("KV_" + stream.Access); len(again) != len(written) || again[len(again)-1].Sequence != written[len(written)-1].Sequence {
		t.Errorf("the restart wrote %d records after %d", len(again), len(written))
	}

	kv, err := r.bus.JS.KeyValue(t.Context(), stream.Access)
	if err != nil {
		t.Fatal(err)
	}
	if err := kv.Delete(t.Context(), operatorKey("jo@example.com")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the operator is gone", func() bool { return r.status("jo's key") == 403 })
	want["jo's key"] = 403
	r.restart()
	check("after a deletion and a restart")
	r.stop()
	if err := os.RemoveAll(r.cfg.DataDir); err != nil {
		t.Fatal(err)
	}
	r.start()
	check("after a deletion and the loss of the store")

	r.cfg.AdminKey = "chosen"
	r.restart()
	want["chosen"], want["the old admin's key"] = 200, 403
	check("with a key for admin given")
	r.cfg.AdminKey, r.cfg.Operators = "", []Operator{{"lena", "another key"}}
	r.restart()
	want["another key"] = 403
	check("with another key for an operator who exists")
}

func TestTakeOverOperatorsRefused(t *testing.T) {
	for name, list := range map[string][]Operator{
		"no identifier":   {{"", "k"}},
		"long identifier": {{strings.Repeat("a", maxIdentifier+1), "k"}},
		"no key":          {{"a", ""}},
		"long key":        {{"a", strings.Repeat("k", maxOperatorKey+1)}},
		"two keys":        {{"a", "secret 1"}, {"a", "secret 2"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := New(Config{Operators: list, Env: lifecycle.Env{DataDir: t.TempDir(), Log: lifecycle.Discard()}})
			if !errors.Is(err, lifecycle.ErrUsage) || strings.Contains(err.Error(), "secret") {
				t.Errorf("New: %v", err)
			}
		})
	}
}

func TestOperatorKey(t *testing.T) {
	keys := map[string]string{}
	for _, id := range []string{"admin", "a.b", "a b", "a..b", ".a", "a.", "=YQ", "jo@example.com", "Ärzte", "a/b", "*", ">", strings.Repeat("é", 128)} {
		key := operatorKey(id)
		if other, taken := keys[key]; taken {
			t.Errorf("%q and %q have the same key", id, other)
		}
		keys[key] = id
		for _, r := range strings.TrimPrefix(key, "operator.") {
			if !strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=.", r) {
				t.Errorf("key of %q has %q", id, r)
			}
		}
	}
	if got := operatorKey("admin"); got != "operator.admin" {
		t.Errorf("key of admin is %s", got)
	}
}
