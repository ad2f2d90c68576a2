package detect

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/0xrawsec/gene/v2/engine"
	"pgregory.net/rapid"

	"github.com/nightjar-edr/nightjar/services/rule-engine/internal/rules"
)

// drawCondition draws a condition that the grammar accepts, with odd spacing,
// redundant parentheses and repeated negations.
func drawCondition(t *rapid.T, depth, operands int) string {
	n := rapid.IntRange(1, 4).Draw(t, "terms")
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteString(rapid.SampledFrom([]string{" and ", " or ", " && ", " OR "}).Draw(t, "operator"))
		}
		b.WriteString(strings.Repeat("!", rapid.SampledFrom([]int{0, 0, 0, 1, 1, 2, 3}).Draw(t, "negations")))
		if depth > 0 && rapid.IntRange(0, 2).Draw(t, "nest") == 0 {
			b.WriteString("(" + drawCondition(t, depth-1, operands) + ")")
			continue
		}
		fmt.Fprintf(&b, "$m%d", rapid.IntRange(0, operands-1).Draw(t, "operand"))
		if rapid.IntRange(0, 15).Draw(t, "adjacent") == 0 {
			fmt.Fprintf(&b, " $m%d", rapid.IntRange(0, operands-1).Draw(t, "operand"))
		}
	}
	return b.String()
}

func compileCondition(t failer, condition string, operands int) *engine.CompiledRule {
	var matches []string
	for i := range operands {
		matches = append(matches, fmt.Sprintf("$m%d: F%d = 'x'", i, i))
	}
	text, _ := json.Marshal(map[string]any{"Name": "R", "Matches": matches, "Condition": condition})
	list, err := rules.Parse(text, nil)
	if err != nil {
		t.Fatalf("%q: %v", condition, err)
	}
	compiled, err := list[0].Compile()
	if err != nil {
		t.Fatalf("%q: %v", condition, err)
	}
	return compiled
}

// TestProgramAgainstGene compares programs with gene's evaluator for every value
// of the operands.
func TestProgramAgainstGene(t *testing.T) {
	const operands = 5
	rapid.Check(t, func(t *rapid.T) {
		condition := drawCondition(t, 4, operands)
		compiled := compileCondition(t, condition, operands)
		numbers := make(map[string]int32)
		for i := range operands {
			numbers[fmt.Sprintf("$m%d", i)] = int32(i)
		}
		p, err := newProgram(compiled.Conditions, numbers)
		if err != nil {
			t.Fatalf("%q: %v", condition, err)
		}
		if p.gene != nil {
			t.Fatalf("%q is left to gene", condition)
		}
		for mask := range 1 << operands {
			value := func(a int32) bool { return mask>>a&1 == 1 }
			want := engine.Compute(compiled.Conditions, operandReader{operands: numbers, atom: value})
			if got := p.run(value); got != want {
				t.Fatalf("%q with operands %05b: got %t, gene says %t", condition, mask, got, want)
			}
		}
	})
}

// TestGuardAgainstProgram checks that a program never ends well while the atoms
// of its guard are false.
func TestGuardAgainstProgram(t *testing.T) {
	const operands = 5
	rapid.Check(t, func(t *rapid.T) {
		condition := drawCondition(t, 3, operands)
		compiled := compileCondition(t, condition, operands)
		fields := newFieldTable()
		table := atomTable{numbers: make(map[string]int32), fields: fields}
		numbers := make(map[string]int32)
		for i := range operands {
			name := fmt.Sprintf("$m%d", i)
			m, _ := compiled.AtomMap.Get(name)
			n, err := table.intern(m.(engine.Matcher))
			if err != nil {
				t.Fatal(err)
			}
			numbers[name] = n
		}
		p, err := newProgram(compiled.Conditions, numbers)
		if err != nil {
			t.Fatal(err)
		}
		g := chooseGuard(p, table.atoms, fields)
		for mask := range 1 << operands {
			fulfilled := g == nil
			for i, a := range table.atoms {
				if g != nil && len(g.equals[a.field]) > 0 && mask>>i&1 == 1 {
					fulfilled = true
				}
			}
			if !fulfilled && p.run(func(a int32) bool { return mask>>a&1 == 1 }) {
				t.Fatalf("%q with operands %05b matches in spite of guard %+v", condition, mask, g)
			}
		}
		if g == nil && !p.run(func(int32) bool { return false }) && p.start != never {
			t.Fatalf("%q needs an operand and has no guard", condition)
		}
	})
}

// TestLongCondition compares a long condition with the same condition evaluated by
// gene.
func TestLongCondition(t *testing.T) {
	condition := "$m0" + strings.Repeat(" and !($m1 or $m2)", 900)
	compiled := compileCondition(t, condition, 3)
	numbers := map[string]int32{"$m0": 0, "$m1": 1, "$m2": 2}
	p, err := newProgram(compiled.Conditions, numbers)
	if err != nil {
		t.Fatal(err)
	}
	if !p.run(func(a int32) bool { return a == 0 }) || p.run(func(a int32) bool { return a < 2 }) {
		t.Error("wrong result")
	}
	left := &program{gene: compiled.Conditions, operands: numbers}
	if !left.run(func(a int32) bool { return a == 0 }) || left.run(func(a int32) bool { return a < 2 }) {
		t.Error("gene has another result")
	}
}
