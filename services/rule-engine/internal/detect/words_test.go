package detect

import (
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/nightjar-edr/nightjar/services/rule-engine/internal/rules"
)

// drawExpr draws a regular expression over few letters, the two runes that fold
// to ASCII letters and runes beyond ASCII among them.
func drawExpr(t *rapid.T, depth int) string {
	if depth == 0 {
		return rapid.SampledFrom([]string{
			"a", "B", "k", "K", "s", "S", "\u212a", "\u017f", "é", "É", "😀", "ab", "ask", "xyz", `\.`, `\\`, ".", "^", "$",
			"[a-c]", "[kK]", "[^a]", "[ks\u212a]", "[é-ü]", "\ufffd", `\w`, `\b`, "7", "",
		}).Draw(t, "leaf")
	}
	sub := func() string { return drawExpr(t, depth-1) }
	switch rapid.IntRange(0, 9).Draw(t, "op") {
	case 0, 1, 2:
		return sub() + sub()
	case 3, 4:
		return "(?:" + sub() + "|" + sub() + ")"
	case 5:
		return "(?i:" + sub() + ")"
	case 6:
		return "(" + sub() + ")?"
	case 7:
		return "(?:" + sub() + ")" + rapid.SampledFrom([]string{"*", "+", "*?", "{2}", "{1,2}", "{3,}"}).Draw(t, "repeat")
	case 8:
		return "^" + sub() + "$"
	}
	return sub()
}

func drawValue(t *rapid.T) string {
	return strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{
		"a", "A", "b", "B", "c", "k", "K", "\u212a", "s", "S", "\u017f", "é", "É", "ü", "😀", "x", "y", "z", "ask", "XYZ", "ab", ".", `\`, "7", "\n", "\ufffd", " ",
	}), 0, 9).Draw(t, "value"), "")
}

// TestExpressionsAgainstRegexp compares atoms, and what is known about their
// expressions, with the regexp package.
func TestExpressionsAgainstRegexp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		expr := "(" + drawExpr(t, 5) + ")"
		re, err := regexp.Compile(expr)
		if err != nil {
			t.Skip()
		}
		a := &atom{}
		a.setExpr(expr)
		e := newEvent(newFieldTable())
		for range 10 {
			text := drawValue(t)
			checkExpression(t, a, re, e, text)
		}
	})
}

func checkExpression(t failer, a *atom, re *regexp.Regexp, e *event, text string) {
	v := &value{state: stateText, text: []byte(text)}
	want := re.MatchString(text)
	if got := a.evalValue(e, v); got != want {
		t.Fatalf("%q on %q: got %t, want %t (%+v)", re, text, got, want, a.list)
	}
	if !want {
		return
	}
	folded := string(e.fold(v))
	l := a.list
	if len(text) < l.length || l.wide && isASCII([]byte(text)) {
		t.Fatalf("%q on %q: least length %d, wide %t", re, text, l.length, l.wide)
	}
	if l.required != nil && !slices.ContainsFunc(l.required, func(w string) bool { return strings.Contains(folded, w) }) {
		t.Fatalf("%q matches %q, which has none of %q", re, text, l.required)
	}
	contains, equals, ok := a.guardWords()
	if !ok {
		return
	}
	hit := slices.Contains(equals, folded)
	if len(contains) > 0 {
		hit = hit || len(newWordIndex(contains).search([]byte(folded), nil)) > 0
	}
	if !hit {
		t.Fatalf("%q matches %q past its guard %q %q", re, text, contains, equals)
	}
}

func TestAnalyse(t *testing.T) {
	w := func(text string, cases wordCase, begin, end bool) word {
		return word{text: text, cases: cases, begin: begin, end: end}
	}
	tests := []struct {
		expr string
		want wordList
	}{
		{`((?is:\\net\.exe$|\\net1\.exe$))`, wordList{
			exact:    true,
			words:    []word{w(`\net.exe`, caseFolded, false, true), w(`\net1.exe`, caseFolded, false, true)},
			required: []string{`\net.exe`, `\net1.exe`}, length: 8,
		}},
		{`(^abc$)`, wordList{exact: true, words: []word{w("abc", caseExact, true, true)}, required: []string{"abc"}, length: 3}},
		{`(net1?\.EXE)`, wordList{
			exact: true, words: []word{w("net.EXE", caseExact, false, false), w("net1.EXE", caseExact, false, false)},
			required: []string{"net.exe", "net1.exe"}, length: 7,
		}},
		{`((?i:C:\\Users\\.*?\\AppData\\))`, wordList{required: []string{`c:\users\`}, length: 18}},
		{`((?i:C:\\Windows\\.*?\\Psexesvc\.))`, wordList{required: []string{`\psexesvc.`}, length: 21}},
		{`((?i:abc)DEF)`, wordList{required: []string{"abcdef"}, length: 6}},
		{`(.*)`, wordList{}},
		{`((?i:😀|😁|x😀))`, wordList{
			exact:    true,
			words:    []word{w("😀", caseNone, false, false), w("😁", caseNone, false, false), w("x😀", caseFolded, false, false)},
			required: []string{"😀", "😁", "x😀"}, wide: true, length: 1,
		}},
		{`[^\x00-\x{10FFFF}]`, wordList{exact: true, length: 1}},
	}
	for _, tc := range tests {
		t.Run(tc.expr, func(t *testing.T) {
			got := analyse(tc.expr)
			if got.exact != tc.want.exact || got.wide != tc.want.wide || got.length != tc.want.length ||
				!slices.Equal(got.words, tc.want.words) || !slices.Equal(got.required, tc.want.required) {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

// TestAnalysisIsBounded has expressions that stand for very many words.
func TestAnalysisIsBounded(t *testing.T) {
	for _, part := range []string{"[ab]", "[abc]?", "(?:a|bc|d)"} {
		expr := strings.Repeat(part, rules.MaxRegexpSize/len(part))
		a := &analyser{left: maxWork}
		re, err := syntax.Parse(expr, syntax.Perl)
		if err != nil {
			t.Fatal(err)
		}
		n := a.wordsOf(re)
		if a.left != 0 || len(n.words) > maxWords || len(n.required) > maxWords {
			t.Errorf("%s...: %d words of %d made, result of %d and %d", part, maxWork-a.left, maxWork, len(n.words), len(n.required))
		}
	}
}

func TestWordIndex(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		letters := rapid.SampledFrom([]string{"a", "b", "\\", ".exe", "c:\\", "é"})
		draw := func(least, most int) string {
			return strings.Join(rapid.SliceOfN(letters, least, most).Draw(t, "text"), "")
		}
		set := make(map[string]struct{})
		for range rapid.IntRange(1, 40).Draw(t, "words") {
			set[draw(3, 6)] = struct{}{}
		}
		var words []string
		for w := range set {
			words = append(words, w)
		}
		slices.Sort(words)
		x := newWordIndex(words)
		text := draw(0, 30)
		var want []int32
		for i, w := range words {
			if strings.Contains(text, w) {
				want = append(want, int32(i))
			}
		}
		got := x.search([]byte(text), nil)
		slices.Sort(got)
		if got = slices.Compact(got); !slices.Equal(got, want) {
			t.Fatalf("%q in %q: got %v, want %v", words, text, got, want)
		}
		if x.contains([]byte(text)) != (len(want) > 0) {
			t.Fatalf("%q in %q: contains says otherwise", words, text)
		}
	})
}

func TestWordIndexIsBounded(t *testing.T) {
	x := newWordIndex([]string{"aaa", "aaaa", "bbb"})
	hits := x.search([]byte(strings.Repeat("a", 1<<20)+"bbb"), nil)
	if len(hits) > 2*manyHits {
		t.Errorf("%d hits", len(hits))
	}
	slices.Sort(hits)
	if got := slices.Compact(hits); !slices.Equal(got, []int32{0, 1, 2}) {
		t.Errorf("got %v", got)
	}
}

func FuzzExpression(f *testing.F) {
	f.Add(`(?i:a|bk)$`, "AbK")
	f.Add(`.{3,}`, "a\nbcd")
	f.Add(`[^é]s+`, "\u017fs")
	f.Fuzz(func(t *testing.T, expr, text string) {
		if len(expr) > 200 {
			return
		}
		expr = "(" + strings.ToValidUTF8(expr, "") + ")"
		re, err := regexp.Compile(expr)
		if err != nil {
			return
		}
		a := &atom{}
		a.setExpr(expr)
		checkExpression(t, a, re, newEvent(newFieldTable()), strings.ToValidUTF8(text, ""))
	})
}
