package rules

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/0xrawsec/gene/v2/engine"
	"pgregory.net/rapid"
)

// conditionRule returns the text of a rule with matches $a to $d.
func conditionRule(condition string) []byte {
	b, _ := json.Marshal(map[string]any{
		"Name":      "R",
		"Meta":      map[string]any{"Schema": "2.0.0"},
		"Matches":   []string{"$a: A = 'x'", "$b: B = 'x'", "$c: C = 'x'", "$d: D = 'x'"},
		"Condition": condition,
	})
	return b
}

func TestConditionGrammar(t *testing.T) {
	tests := []struct {
		condition string
		want      string // normalised condition, empty when it is refused
	}{
		{"$a", "$a"},
		{"!$a", "!$a"},
		{"! $a", "! $a"},
		{"!!$a", "!!$a"},
		{"$a and $b", "$a and $b"},
		{"$a AND $b OR $c", "$a AND $b OR $c"},
		{"$a && $b || $c", "$a && $b || $c"},
		{"($a)", "($a)"},
		{"((($a) or ($b)) and !(($c)))", "((($a) or ($b)) and !(($c)))"},
		{"!(!$a and ($b or $c))", "!(!$a and ($b or $c))"},
		{"$a  and   $b", "$a and $b"},
		{" $a and\t$b\n", "$a and $b"},
		{"( $a and $b )", "( $a and $b )"},
		{"$a and ($b or $c $d)", "$a and ($b or $c $d)"},
		{"", ""},
		{" ", ""},
		{"()", ""},
		{"$a and ()", ""},
		{"!", ""},
		{"!(", ""},
		{"$a and !", ""},
		{"($a", ""},
		{"$a)", ""},
		{"$a and", ""},
		{"and $a", ""},
		{"$a and or $b", ""},
		{"$a and and $b", ""},
		{"$a ($b)", ""},
		{"($a) $b", ""},
		{"($a)($b)", ""},
		{"$a !$b", ""},
		{"$a)and($b", ""},
		{"$a and$b", ""},
		{"$a xor $b", ""},
		{"$a & $b", ""},
		{"a and b", ""},
		{"$", ""},
		{")$a(", ""},
		{"$a\u00a0and $b", ""},
		{"$a and $e", ""},
	}
	for _, tc := range tests {
		t.Run(tc.condition, func(t *testing.T) {
			list, err := Parse(conditionRule(tc.condition), nil)
			switch {
			case tc.want == "" && err == nil:
				t.Errorf("accepted as %q", list[0].Condition)
			case tc.want != "" && err != nil:
				t.Errorf("refused: %v", err)
			case tc.want != "" && list[0].Condition != tc.want:
				t.Errorf("got %q, want %q", list[0].Condition, tc.want)
			}
		})
	}
}

// TestAcceptedConditionsDoNotPanic builds conditions from tokens in any order and
// has gene evaluate those that the grammar accepts.
func TestAcceptedConditionsDoNotPanic(t *testing.T) {
	tokens := []string{"$a", "$b", "$c", "(", ")", "!", "and", "or", " ", "  "}
	rapid.Check(t, func(t *rapid.T) {
		parts := rapid.SliceOfN(rapid.SampledFrom(tokens), 0, 14).Draw(t, "tokens")
		checkCondition(t, strings.Join(parts, rapid.SampledFrom([]string{"", " "}).Draw(t, "separator")))
	})
}

type fatalf interface {
	Fatalf(format string, args ...any)
}

func checkCondition(t fatalf, condition string) {
	list, err := Parse(conditionRule(condition), nil)
	if err != nil {
		return
	}
	compiled, err := list[0].Compile()
	if err != nil {
		t.Fatalf("gene refuses %q: %v", condition, err)
	}
	want := strings.Count(condition, "$")
	if got := countOperands(compiled.Conditions); got != want {
		t.Fatalf("gene sees %d operands of %d in %q", got, want, condition)
	}
	for mask := range 16 {
		operands := engine.OperandMap{"$a": mask&1 != 0, "$b": mask&2 != 0, "$c": mask&4 != 0, "$d": mask&8 != 0}
		engine.Compute(compiled.Conditions, operands)
	}
}

func countOperands(ce *engine.ConditionElement) int {
	n := 0
	for ; ce != nil; ce = ce.Next {
		if ce.Type == engine.TypeOperand {
			n++
		}
	}
	return n
}

func FuzzCondition(f *testing.F) {
	for _, s := range []string{"$a and $b", "!($a or !$b)", "$a  $b", "()", "((!($a)))", "!(", "$a)and(", "! ! $a || $b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, condition string) {
		checkCondition(t, condition)
	})
}
