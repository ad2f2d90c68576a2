//go:build recorded

package rules

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func recorded(t *testing.T, name string) []byte {
	t.Helper()
	root := os.Getenv("NIGHTJAR_TESTDATA")
	if root == "" {
		t.Fatal("NIGHTJAR_TESTDATA is not set: it names the folder with the recorded events and rules")
	}
	b, err := os.ReadFile(filepath.Join(root, "data", "rules", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRecordedRules(t *testing.T) {
	tests := []struct {
		file, templates string
		rules, disabled int
		form            Form
	}{
		{"gene-rules-v2.gen", "", 109, 0, FormV2},
		{"sigma-converted-v2.gen", "", 1658, 0, FormV2},
		{"gene-rules-v2-templated.gen", "regexp-templates.toml", 119, 10, FormV2},
		{"gene-rules-v1.gen", "", 107, 0, FormV1},
		{"gene-rules-v1-migrated.gen", "", 107, 0, FormV2},
		{"gene-rules-v1-templated.gen", "regexp-templates-v1.tpl", 116, 9, FormV1},
		{"gene-engine-test-v2.gen", "", 108, 0, FormV2},
		{"gene-rule-test1-mixed-keys.gen", "", 1, 0, FormV2},
	}
	for _, tc := range tests {
		t.Run(tc.file, func(t *testing.T) {
			list, err := Parse(recorded(t, tc.file), recordedTemplates(t, tc.templates))
			if err != nil {
				t.Fatal(err)
			}
			disabled := 0
			for _, r := range list {
				if r.Form != tc.form {
					t.Errorf("%s is of form %s", r.Name, r.Form)
				}
				again, err := Parse([]byte(r.Text()), nil)
				switch {
				case r.Disabled:
					disabled++
				case err != nil:
					t.Errorf("%s cannot be parsed again: %v", r.Name, err)
				case again[0].Text() != r.Text():
					t.Errorf("%s changes to %s", r.Text(), again[0].Text())
				}
			}
			if len(list) != tc.rules || disabled != tc.disabled {
				t.Errorf("%d rules, %d disabled, want %d and %d", len(list), disabled, tc.rules, tc.disabled)
			}
		})
	}
}

func recordedTemplates(t *testing.T, name string) *Templates {
	t.Helper()
	if name == "" {
		return nil
	}
	tpl, err := ParseTemplates(name, recorded(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return tpl
}

// TestRecordedTemplates compares our expansion of templates with the one of
// gene's own tools.
func TestRecordedTemplates(t *testing.T) {
	for _, tc := range []struct{ templated, templates, compiled string }{
		{"gene-rules-v1-templated.gen", "regexp-templates-v1.tpl", "gene-rules-v1.gen"},
		{"gene-rules-v2-templated.gen", "regexp-templates.toml", "gene-rules-v2.gen"},
	} {
		t.Run(tc.templated, func(t *testing.T) {
			want := make(map[string]*Rule)
			list, err := Parse(recorded(t, tc.compiled), nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range list {
				want[r.Name] = r
			}
			list, err = Parse(recorded(t, tc.templated), recordedTemplates(t, tc.templates))
			if err != nil {
				t.Fatal(err)
			}
			compared := 0
			for _, r := range list {
				if r.Disabled {
					continue
				}
				w := want[r.Name]
				if w == nil {
					t.Errorf("%s is not among the compiled rules", r.Name)
					continue
				}
				compared++
				if !slices.Equal(r.Matches, w.Matches) || r.Condition != w.Condition {
					t.Errorf("%s:\n got %q\nwant %q", r.Name, r.Matches, w.Matches)
				}
			}
			if compared != len(want) {
				t.Errorf("compared %d of %d rules", compared, len(want))
			}
		})
	}
}
