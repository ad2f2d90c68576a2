package detect

import (
	"regexp/syntax"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Bounds of the analysis. Beyond them an expression is left to the regexp
// package.
const (
	maxWords      = 8192
	maxWordsBytes = 1 << 20
	maxClassRunes = 16
	// maxWork bounds the words made on the way to the result.
	maxWork = 1 << 18
)

// wordCase says how the letters of a word compare.
type wordCase uint8

const (
	// caseNone: the word has no letters that case folding changes.
	caseNone wordCase = iota
	// caseFolded: letters match in any case. The word is in folded form.
	caseFolded
	// caseExact: letters match as they are.
	caseExact
	// caseMixed: some letters fold and some do not. The word only serves to
	// rule out values.
	caseMixed
)

// word is one alternative of an expression that is a list of words.
type word struct {
	text       string
	cases      wordCase
	begin, end bool
}

// wordList is what is known about an expression.
type wordList struct {
	// exact is true when a value matches exactly if it holds one of words.
	exact bool
	words []word
	// required holds folded words, one of which is in the folded form of every
	// matching value. Nil means that nothing is known.
	required []string
	// wide is true when every matching value has a rune beyond ASCII.
	wide bool
	// length is the least number of bytes of a matching value.
	length int
}

// analyse finds the words of a regular expression.
func analyse(expr string) wordList {
	re, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		return wordList{}
	}
	re = re.Simplify()
	a := &analyser{left: maxWork}
	n := a.wordsOf(re)
	l := wordList{required: n.mustHave(), wide: n.isWide(), length: leastLength(re)}
	mixed := slices.ContainsFunc(n.words, func(w word) bool { return w.cases == caseMixed })
	if n.exact && !mixed {
		l.exact, l.words = true, n.words
	}
	return l
}

// node is the knowledge about a part of an expression: either exact with the
// words that the part stands for, or words required in whatever it matches.
type node struct {
	exact    bool
	words    []word
	required []string
	wide     bool
}

var unknown = node{}

// analyser finds the words of one expression with bounded work.
type analyser struct {
	left int
}

// spend takes the cost of making some words. It reports false when too much work
// was done.
func (a *analyser) spend(words int) bool {
	if words > a.left {
		a.left = 0
		return false
	}
	a.left -= words
	return true
}

func (a *analyser) wordsOf(re *syntax.Regexp) node {
	if !a.spend(1) {
		return unknown
	}
	switch re.Op {
	case syntax.OpNoMatch:
		return node{exact: true}
	case syntax.OpEmptyMatch:
		return node{exact: true, words: []word{{}}}
	case syntax.OpBeginText:
		return node{exact: true, words: []word{{begin: true}}}
	case syntax.OpEndText:
		return node{exact: true, words: []word{{end: true}}}
	case syntax.OpLiteral:
		return literalWords(re)
	case syntax.OpCharClass:
		return classWords(re.Rune)
	case syntax.OpCapture:
		return a.wordsOf(re.Sub[0])
	case syntax.OpQuest:
		if n := a.wordsOf(re.Sub[0]); n.exact && len(n.words) < maxWords && a.spend(len(n.words)) {
			return node{exact: true, words: append([]word{{}}, n.words...)}
		}
	case syntax.OpPlus:
		n := a.wordsOf(re.Sub[0])
		return node{required: n.mustHave(), wide: n.isWide()}
	case syntax.OpConcat:
		return a.concatWords(re.Sub)
	case syntax.OpAlternate:
		return a.alternateWords(re.Sub)
	}
	return unknown
}

// mustHave returns the required words of either kind of node.
func (n node) mustHave() []string {
	if n.exact {
		return folded(n.words)
	}
	return n.required
}

// isWide reports whether whatever the node matches has a rune beyond ASCII.
func (n node) isWide() bool {
	if !n.exact {
		return n.wide
	}
	return len(n.words) > 0 && !slices.ContainsFunc(n.words, func(w word) bool { return isASCII([]byte(w.text)) })
}

// folded returns the words in folded form, nil if one of them is empty.
func folded(words []word) []string {
	out := make([]string, 0, len(words))
	seen := make(map[string]struct{}, len(words))
	for _, w := range words {
		if w.text == "" {
			return nil
		}
		f := foldString(w.text)
		if _, dup := seen[f]; !dup {
			seen[f] = struct{}{}
			out = append(out, f)
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

func literalWords(re *syntax.Regexp) node {
	var b strings.Builder
	cases := caseNone
	for _, r := range re.Rune {
		if r == utf8.RuneError {
			// Stands for malformed input too.
			return unknown
		}
		c := caseNone
		if unicode.SimpleFold(r) != r {
			c = caseExact
			if re.Flags&syntax.FoldCase != 0 {
				if r >= utf8.RuneSelf {
					return node{wide: true}
				}
				c = caseFolded
				r = rune(lowerTable[byte(r)])
			}
		}
		cases = join(cases, c)
		b.WriteRune(r)
	}
	return node{exact: true, words: []word{{text: b.String(), cases: cases}}}
}

func join(a, b wordCase) wordCase {
	switch {
	case a == caseNone:
		return b
	case b == caseNone || a == b:
		return a
	}
	return caseMixed
}

// classWords turns a small class into one word for each rune, or for each letter
// when the class holds all its cases.
func classWords(ranges []rune) node {
	if len(ranges) == 0 {
		return node{exact: true}
	}
	unknown := node{wide: ranges[0] >= utf8.RuneSelf}
	var runes []rune
	for i := 0; i+1 < len(ranges); i += 2 {
		if ranges[i+1]-ranges[i] >= maxClassRunes {
			return unknown
		}
		for r := ranges[i]; r <= ranges[i+1]; r++ {
			runes = append(runes, r)
		}
		if len(runes) > maxClassRunes {
			return unknown
		}
	}
	has := func(r rune) bool {
		for i := 0; i+1 < len(ranges); i += 2 {
			if r >= ranges[i] && r <= ranges[i+1] {
				return true
			}
		}
		return false
	}
	var words []word
	seen := make(map[word]struct{})
	for _, r := range runes {
		if r == utf8.RuneError {
			return unknown
		}
		w := word{text: string(r)}
		if unicode.SimpleFold(r) != r {
			w.cases = caseExact
			closed, ascii := true, r < utf8.RuneSelf
			for o := unicode.SimpleFold(r); o != r; o = unicode.SimpleFold(o) {
				closed = closed && has(o)
				ascii = ascii || o < utf8.RuneSelf
			}
			if closed && ascii {
				w = word{text: foldString(string(r)), cases: caseFolded}
			}
		}
		if _, dup := seen[w]; !dup {
			seen[w] = struct{}{}
			words = append(words, w)
		}
	}
	return node{exact: true, words: words}
}

func (a *analyser) alternateWords(subs []*syntax.Regexp) node {
	n := node{exact: true, wide: len(subs) > 0}
	known := true
	for _, sub := range subs {
		s := a.wordsOf(sub)
		must := s.mustHave()
		if s.exact && len(s.words) == 0 {
			continue
		}
		n.wide = n.wide && s.isWide()
		known = known && must != nil && len(n.required)+len(must) <= maxWords && a.spend(len(must))
		if known {
			n.required = append(n.required, must...)
		}
		n.exact = n.exact && s.exact && len(n.words)+len(s.words) <= maxWords
		if n.exact {
			n.words = append(n.words, s.words...)
		}
	}
	if !known {
		n.required = nil
	}
	if !n.exact {
		n.words = nil
	}
	return n
}

// concatWords joins runs of exact parts and keeps the best run as required when
// there are gaps between them.
func (a *analyser) concatWords(subs []*syntax.Regexp) node {
	run := []word{{}}
	gaps, wide := false, false
	var best []string
	for _, sub := range subs {
		s := a.wordsOf(sub)
		wide = wide || s.isWide()
		if s.exact {
			if joined, ok := a.product(run, s.words); ok {
				run = joined
				continue
			}
		}
		gaps = true
		best = better(best, folded(run))
		if s.exact {
			run = s.words
			continue
		}
		best = better(best, s.required)
		run = []word{{}}
	}
	if !gaps {
		return node{exact: true, words: run}
	}
	return node{required: better(best, folded(run)), wide: wide}
}

// product joins every word on the left with every word on the right. Pairs that can never match,
// such as text before a beginning, are left out.
func (a *analyser) product(left, right []word) ([]word, bool) {
	if n := len(left) * len(right); n > maxWords || !a.spend(n) {
		return nil, false
	}
	out := make([]word, 0, len(left)*len(right))
	size := 0
	for _, x := range left {
		for _, y := range right {
			if x.text != "" && y.begin || x.end && y.text != "" {
				continue
			}
			w := word{
				text:  x.text + y.text,
				cases: join(x.cases, y.cases),
				begin: x.begin || y.begin,
				end:   x.end || y.end,
			}
			if size += len(w.text); size > maxWordsBytes {
				return nil, false
			}
			out = append(out, w)
		}
	}
	return out, true
}

// leastLength returns the number of runes, and so at least of bytes, without which
// a simplified expression cannot match.
func leastLength(re *syntax.Regexp) int {
	const most = 1 << 20
	n := 0
	switch re.Op {
	case syntax.OpLiteral:
		n = len(re.Rune)
	case syntax.OpCharClass, syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		n = 1
	case syntax.OpCapture, syntax.OpPlus:
		n = leastLength(re.Sub[0])
	case syntax.OpConcat:
		for _, sub := range re.Sub {
			n = min(most, n+leastLength(sub))
		}
	case syntax.OpAlternate:
		n = leastLength(re.Sub[0])
		for _, sub := range re.Sub[1:] {
			n = min(n, leastLength(sub))
		}
	}
	return n
}

// better chooses between two sets of required words the one that rules out more
// texts, by estimate.
func better(a, b []string) []string {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	case rarityOf(b) < rarityOf(a):
		return b
	}
	return a
}

func rarityOf(words []string) int {
	cost := 0
	for _, w := range words {
		cost += rarity(w)
	}
	return cost
}

func shortest(words []string) int {
	n := len(words[0])
	for _, w := range words[1:] {
		n = min(n, len(w))
	}
	return n
}
