package detect

import (
	"errors"
	"fmt"

	"github.com/0xrawsec/gene/v2/engine"
)

// Targets of a decision that end the program.
const (
	always int32 = -1
	never  int32 = -2
)

// maxDecisions bounds the size of one program. Conditions that need more are
// left to gene.
const maxDecisions = 1 << 16

// decision reads one atom and says where to go on.
type decision struct {
	atom        int32
	then, other int32
}

// program is a condition as a graph of decisions without cycles.
type program struct {
	start     int32
	decisions []decision
	// gene evaluates the condition when there is no graph.
	gene     *engine.ConditionElement
	operands map[string]int32
}

var errTooManyDecisions = errors.New("condition needs too many decisions")

// newProgram compiles gene's parsed condition. Operands maps match names to
// atoms.
//
// Gene evaluates a condition from left to right with rules of its own: "and" and
// "or" have no precedence, and levels of parentheses decide where it goes on
// after a short cut. The program is what gene's evaluator does when it is run
// once for each value of the operands: every place at which gene can be is a
// pair of an element of the condition and the value computed so far, with the
// negations still pending. From each it goes on deterministically up to the next
// operand, which becomes a decision.
func newProgram(cond *engine.ConditionElement, operands map[string]int32) (*program, error) {
	b := &programBuilder{
		operands: operands,
		places:   make(map[place]int32),
		same:     make(map[decision]int32),
		pendings: make(map[pending]*pending),
	}
	start, err := b.run(cond, false, nil)
	if errors.Is(err, errTooManyDecisions) {
		return &program{gene: cond, operands: operands}, nil
	}
	if err != nil {
		return nil, err
	}
	return &program{start: start, decisions: b.decisions}, nil
}

// pending is a negation whose parenthesis is being evaluated.
type pending struct {
	level int
	// double is true when the negation follows another one directly.
	double bool
	outer  *pending
}

// place is a state of gene's evaluator.
type place struct {
	at    *engine.ConditionElement
	value bool
	in    *pending
}

type programBuilder struct {
	operands  map[string]int32
	decisions []decision
	places    map[place]int32
	same      map[decision]int32
	pendings  map[pending]*pending
}

// enter returns the one pointer for a pending negation, so that places compare.
func (b *programBuilder) enter(p pending) *pending {
	if have, ok := b.pendings[p]; ok {
		return have
	}
	b.pendings[p] = &p
	return &p
}

// run follows gene's compute function from an element on.
func (b *programBuilder) run(ce *engine.ConditionElement, value bool, in *pending) (int32, error) {
	if ce == nil {
		return b.leave(nil, value, in)
	}
	at := place{ce, value, in}
	if n, ok := b.places[at]; ok {
		return n, nil
	}
	if len(b.places) > maxDecisions {
		return 0, errTooManyDecisions
	}
	n, err := b.step(ce, value, in)
	if err != nil {
		return 0, err
	}
	b.places[at] = n
	return n, nil
}

func (b *programBuilder) step(ce *engine.ConditionElement, value bool, in *pending) (int32, error) {
	switch ce.Type {
	case engine.TypeOperand:
		return b.decide(ce.Operand, func(v bool) (int32, error) {
			if ce.Next != nil && ce.Next.Level != ce.Level {
				return b.leave(ce.Next, v, in)
			}
			return b.run(ce.Next, v, in)
		})
	case engine.TypeOperator:
		// A short cut: "and" after false, "or" after true.
		if value == (ce.Operator == '|') {
			return b.leave(nextLower(ce), value, in)
		}
		return b.run(ce.Next, false, in)
	case engine.TypeNegate:
		return b.negate(ce, in)
	}
	return 0, fmt.Errorf("unknown element %d in condition", ce.Type)
}

func (b *programBuilder) negate(ce *engine.ConditionElement, in *pending) (int32, error) {
	next := ce.Next
	switch {
	case next == nil:
		return 0, errors.New("nothing follows ! in condition")
	case next.Type == engine.TypeNegate:
		return b.run(next, false, b.enter(pending{level: ce.Level, double: true, outer: in}))
	case next.Type != engine.TypeOperand:
		return 0, errors.New("an operator follows ! in condition")
	case next.Level == ce.Level && next.Group == ce.Group:
		return b.decide(next.Operand, func(v bool) (int32, error) {
			if after := next.Next; after != nil && after.Level != ce.Level {
				return b.leave(after, !v, in)
			}
			return b.run(next.Next, !v, in)
		})
	}
	return b.run(next, false, b.enter(pending{level: ce.Level, outer: in}))
}

// leave follows what happens when gene's compute function returns: the loop that
// called it calls it again or ends.
func (b *programBuilder) leave(next *engine.ConditionElement, value bool, in *pending) (int32, error) {
	switch {
	case in == nil && next == nil:
		if value {
			return always, nil
		}
		return never, nil
	case in == nil || next != nil && next.Level > in.level:
		return b.run(next, value, in)
	case in.double:
		return b.run(next, !value, in.outer)
	}
	return b.leave(next, !value, in.outer)
}

func (b *programBuilder) decide(operand string, branch func(bool) (int32, error)) (int32, error) {
	a, ok := b.operands[operand]
	if !ok {
		return 0, fmt.Errorf("unknown operand %s in condition", operand)
	}
	then, err := branch(true)
	if err != nil {
		return 0, err
	}
	other, err := branch(false)
	if err != nil {
		return 0, err
	}
	if then == other {
		return then, nil
	}
	d := decision{atom: a, then: then, other: other}
	if n, ok := b.same[d]; ok {
		return n, nil
	}
	n := int32(len(b.decisions))
	b.decisions = append(b.decisions, d)
	b.same[d] = n
	return n, nil
}

// nextLower returns the first element behind ce on a lower level.
func nextLower(ce *engine.ConditionElement) *engine.ConditionElement {
	for e := ce.Next; e != nil; e = e.Next {
		if e.Level < ce.Level {
			return e
		}
	}
	return nil
}

// operandReader lets gene evaluate a condition over atoms.
type operandReader struct {
	operands map[string]int32
	atom     func(int32) bool
}

// Read implements engine.OperandReader.
func (r operandReader) Read(operand string) (value, ok bool) {
	a, ok := r.operands[operand]
	if !ok {
		return false, false
	}
	return r.atom(a), true
}

// run evaluates the program.
func (p *program) run(atom func(int32) bool) bool {
	if p.gene != nil {
		return engine.Compute(p.gene, operandReader{operands: p.operands, atom: atom})
	}
	n := p.start
	for n >= 0 {
		d := &p.decisions[n]
		if atom(d.atom) {
			n = d.then
		} else {
			n = d.other
		}
	}
	return n == always
}

// try compares the program with gene's own evaluator for a few values of the
// operands, and leaves the condition to gene should they ever differ. The error
// says that gene panics on the condition.
func (p *program) try(cond *engine.ConditionElement, operands map[string]int32) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("gene: %v", v)
		}
	}()
	for _, value := range []func(int32) bool{
		func(int32) bool { return false },
		func(int32) bool { return true },
		func(a int32) bool { return a%2 == 0 },
	} {
		if engine.Compute(cond, operandReader{operands: operands, atom: value}) != p.run(value) {
			*p = program{gene: cond, operands: operands}
		}
	}
	return nil
}
