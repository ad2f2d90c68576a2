//go:build failpoint

package failpoint

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	m, err := parse(" rule-engine/swap-after=kill@3, view/after-commit:raised=sleep(2ms)")
	if err != nil {
		t.Fatal(err)
	}
	if a := m["rule-engine/swap-after"]; a == nil || a.at != 3 || a.do == nil {
		t.Errorf("%+v", a)
	}
	if a := m[part(ViewAfterCommit, "raised")]; a == nil || a.at != 1 {
		t.Errorf("%+v", a)
	}
	if m, err := parse(""); err != nil || len(m) != 0 {
		t.Errorf("nothing: %v, %v", m, err)
	}
	for spec, want := range map[string]string{
		"nowhere=kill": "no failpoint", "view/after-commit=kill": "no failpoint", "rule-engine/swap-after": "action",
		"rule-engine/swap-after=kill@0": "number", "rule-engine/swap-after=kill@x": "number",
		"rule-engine/swap-after=sleep(x)": "duration", "rule-engine/swap-after=drop": "action",
	} {
		if _, err := parse(spec); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", spec, err, want)
		}
	}
}

// A point acts at its hit, and at no other.
func TestHit(t *testing.T) {
	before := armed
	t.Cleanup(func() { armed = before })
	var err error
	if armed, err = parse("rule-engine/swap-after=panic@2,view/after-commit:raised=sleep(1ns)"); err != nil {
		t.Fatal(err)
	}
	panics := func(f func()) (did bool) {
		defer func() { did = recover() != nil }()
		f()
		return false
	}
	for i, want := range []bool{false, true, false} {
		if got := panics(func() { Hit(SwapAfter) }); got != want {
			t.Errorf("hit %d panics %t", i+1, got)
		}
	}
	if panics(func() { Hit(SwapBefore); HitIn(ViewAfterCommit, "events") }) {
		t.Error("a point that is not armed panics")
	}
	HitIn(ViewAfterCommit, "raised")
	if armed[part(ViewAfterCommit, "raised")].hits.Load() != 1 {
		t.Error("the point of a view is not hit")
	}
}
