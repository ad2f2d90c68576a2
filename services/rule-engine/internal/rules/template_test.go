package rules

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestParseTemplates(t *testing.T) {
	want := []string{"bin-av", "system"}
	for name, text := range map[string]string{
		"regexp.toml": "# comment\nsystem = '(?i:C:\\\\Windows)'\nbin-av = 'x{2}'\n",
		"regexp.tpl":  "### comment\n\n  system: '(?i:C:\\\\Windows)'  \nbin-av:'x{2}'\n",
	} {
		t.Run(name, func(t *testing.T) {
			tpl, err := ParseTemplates(name, []byte(text))
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(tpl.Names(), want) || tpl.Len() != 2 {
				t.Errorf("got %v", tpl.Names())
			}
			list, err := Parse([]byte(`{"Name":"R","Matches":["$a: Image ~= '^{{system}}{{bin-av}}a{{2}}$'"],"Condition":"$a"}`), tpl)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := list[0].Matches[0], `$a: Image ~= '^(?i:C:\\Windows)x{2}a{{2}}$'`; got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			if !strings.Contains(list[0].Text(), "Windows") {
				t.Errorf("the text is not expanded: %s", list[0].Text())
			}
		})
	}
}

func TestTemplatesReferToTemplates(t *testing.T) {
	tpl, err := ParseTemplates("x.tpl", []byte("z: '<{{y}}>'\ny: '[{{x}}]'\nx: 'v'\nloop: '{{pool}}'\npool: '{{loop}}'\nbad: '{{none}}'\n"))
	if err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{
		"{{z}}{{x}}": "<[v]>v",
		"{{ z }}":    "{{ z }}",
		"{{z":        "{{z",
		"{{{x}}}":    "{v}",
	} {
		if got, err := tpl.expand(in); err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", in, got, err, want)
		}
	}
	for in, want := range map[string]string{
		"{{loop}}": "refers to itself",
		"{{bad}}":  "Unknown template {{none}}",
		"{{no}}":   "Unknown template {{no}}",
	} {
		if _, err := tpl.expand(in); err == nil || !strings.Contains(err.Error(), want) || !errors.Is(err, ErrTemplate) {
			t.Errorf("%s: got error %v, want %s", in, err, want)
		}
	}
}

func TestTemplateErrors(t *testing.T) {
	doubling := &strings.Builder{}
	fmt.Fprintf(doubling, "t0: 'xxxxxxxxxx'\n")
	for i := 1; i < 60; i++ {
		fmt.Fprintf(doubling, "t%d: '{{t%d}}{{t%d}}'\n", i, i-1, i-1)
	}
	tests := []struct {
		name, file, text, want string
	}{
		{"extension", "x.txt", "", "unknown extension"},
		{"toml syntax", "x.toml", "a = ", "x.toml"},
		{"toml type", "x.toml", "a = 1", `"a" is not a string`},
		{"toml table", "x.toml", "[t]\na = 'x'", `"t" is not a string`},
		{"toml name", "x.toml", "\"a b\" = 'x'", "invalid template name"},
		{"tpl without quotes", "x.tpl", "\n\na: b", "line 3: want name: 'regexp'"},
		{"tpl without value", "x.tpl", "a", "line 1: want name: 'regexp'"},
		{"tpl one quote", "x.tpl", "a: '", "line 1: want name: 'regexp'"},
		{"tpl name", "x.tpl", "a b: 'x'", "invalid template name"},
		{"tpl twice", "x.tpl", "a: 'x'\na: 'y'", "line 2: template \"a\" is defined twice"},
		{"size", "x.tpl", strings.Repeat("#", MaxTemplateFileSize+1), "too large"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			_, err := ParseTemplates(tc.file, []byte(tc.text))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got error %v, want %s", err, tc.want)
			}
		})
	}
	t.Run("expansion", func(t *testing.T) {
		tpl, err := ParseTemplates("x.tpl", []byte(doubling.String()))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tpl.expand("{{t59}}"); !errors.Is(err, ErrTooLarge) {
			t.Errorf("got error %v", err)
		}
	})
}

func TestMerge(t *testing.T) {
	parse := func(text string) *Templates {
		tpl, err := ParseTemplates("x.tpl", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return tpl
	}
	tpl, err := Merge(parse("a: '{{b}}'"), nil, parse("b: 'x'"), parse("b: 'x'"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := tpl.expand("{{a}}"); err != nil || got != "x" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := Merge(parse("b: 'x'"), parse("b: 'y'")); !errors.Is(err, ErrTemplate) {
		t.Errorf("got error %v", err)
	}
}

func FuzzTemplates(f *testing.F) {
	f.Add("a = 'x'\nb = '{{a}}'", true)
	f.Add("a: 'x'\nb: '{{a}}{{b}}'\n# c", false)
	f.Add("[[a]]\nb.c = \"\"\"x\"\"\"", true)
	f.Fuzz(func(t *testing.T, text string, isTOML bool) {
		name := "f.tpl"
		if isTOML {
			name = "f.toml"
		}
		tpl, err := ParseTemplates(name, []byte(text))
		if err != nil {
			return
		}
		for _, n := range tpl.Names() {
			if _, err := tpl.expand("x{{" + n + "}}y"); err != nil && !errors.Is(err, ErrTemplate) && !errors.Is(err, ErrTooLarge) {
				t.Errorf("%s: %v", n, err)
			}
		}
	})
}
