package detect

import (
	"regexp/syntax"
	"unicode/utf8"
)

// runeRun is an expression that a value matches exactly if it has so many runes
// of a class in a row. Expressions such as ".{512,}" are slow as automata.
type runeRun struct {
	least  int
	ascii  [utf8.RuneSelf]bool
	ranges []rune
}

// findRun returns the run that an expression stands for, nil when it is
// something else.
func findRun(expr string) *runeRun {
	re, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		return nil
	}
	for re.Op == syntax.OpCapture {
		re = re.Sub[0]
	}
	run := &runeRun{least: 1}
	switch re.Op {
	case syntax.OpRepeat:
		run.least = re.Min
		re = re.Sub[0]
	case syntax.OpPlus:
		re = re.Sub[0]
	}
	for re.Op == syntax.OpCapture {
		re = re.Sub[0]
	}
	switch re.Op {
	case syntax.OpAnyChar:
		run.ranges = []rune{0, utf8.MaxRune}
	case syntax.OpAnyCharNotNL:
		run.ranges = []rune{0, '\n' - 1, '\n' + 1, utf8.MaxRune}
	case syntax.OpCharClass:
		run.ranges = re.Rune
	default:
		return nil
	}
	if run.least < 1 {
		return nil
	}
	for r := range run.ascii {
		run.ascii[r] = run.has(rune(r))
	}
	return run
}

func (r *runeRun) has(c rune) bool {
	for i := 0; i+1 < len(r.ranges); i += 2 {
		if c >= r.ranges[i] && c <= r.ranges[i+1] {
			return true
		}
	}
	return false
}

// in reports whether the run is in a text, which is valid UTF-8.
func (r *runeRun) in(text []byte) bool {
	n := 0
	for i := 0; i < len(text); {
		var in bool
		if c := text[i]; c < utf8.RuneSelf {
			in = r.ascii[c]
			i++
		} else {
			c, size := utf8.DecodeRune(text[i:])
			in = r.has(c)
			i += size
		}
		if !in {
			n = 0
			continue
		}
		if n++; n >= r.least {
			return true
		}
	}
	return false
}
