package detect

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/0xrawsec/gene/v2/engine"

	"github.com/nightjar-edr/nightjar/services/rule-engine/internal/rules"
)

// Set is an immutable set of compiled rules. It is safe for concurrent use.
type Set struct {
	rules   []*rule
	atoms   []*atom
	fields  *fieldTable
	info    map[string]RuleInfo
	waiting []Waiting
	count   int

	// The groups of rules by what their meta section selects.
	channels map[string]*channelGroups
	anyIDs   map[int64]*group
	any      *group

	// aside marks rules that panicked.
	aside   []atomic.Bool
	onPanic func(rule string, value any)
}

// channelGroups holds the rules of one channel.
type channelGroups struct {
	any *group
	ids map[int64]*group
}

// rule is a compiled rule that can match.
type rule struct {
	info      RuleInfo
	actions   []string
	computers map[string]struct{}
	program   *program
}

// Waiting is a rule that refers to containers which do not exist. It counts as
// compiled and never matches.
type Waiting struct {
	// Rule is the name of the rule.
	Rule string
	// Containers holds the names of the missing containers, sorted.
	Containers []string
}

// Option changes how a set works.
type Option func(*Set)

// WithPanicHandler has f called when a rule panics on an event, with its name
// and the value of the panic. The set goes on without the rule; f is called once
// for it, from the goroutine of the worker. The name is empty when the panic
// cannot be laid on a rule; then that event has no detection.
func WithPanicHandler(f func(rule string, value any)) Option {
	return func(s *Set) { s.onPanic = f }
}

// Lines is the content of a container, in lower case. It must not change once a
// set is compiled with it; any number of sets may share it.
type Lines map[string]struct{}

// Add adds a line.
func (l Lines) Add(line string) { l[strings.ToLower(line)] = struct{}{} }

// Compile makes a set of the rules that are not disabled. Containers maps names
// to lines; a container without lines exists, and case does not matter. It returns the rules that wait for a container, or an error that
// changes nothing: a *rules.CompileError, a *rules.ExistsError for two rules of
// one name, or rules.ErrTooLarge. Compile may be called by several goroutines.
func Compile(list []*rules.Rule, containers map[string]Lines, opts ...Option) (*Set, []Waiting, error) {
	if len(list) > rules.MaxRules {
		return nil, nil, fmt.Errorf("%w: %d rules, at most %d are allowed in a set", rules.ErrTooLarge, len(list), rules.MaxRules)
	}
	b := &setBuilder{
		set: &Set{
			fields:   newFieldTable(),
			info:     make(map[string]RuleInfo, len(list)),
			channels: make(map[string]*channelGroups),
			anyIDs:   make(map[int64]*group),
			any:      &group{},
		},
	}
	b.atoms = atomTable{
		numbers:    make(map[string]int32),
		fields:     b.set.fields,
		containers: containers,
	}
	for _, r := range list {
		if r.Disabled {
			continue
		}
		if err := b.add(r); err != nil {
			return nil, nil, err
		}
	}
	for _, opt := range opts {
		opt(b.set)
	}
	s := b.finish()
	return s, s.Waiting(), nil
}

// Count returns the number of compiled rules, those that wait included.
func (s *Set) Count() int { return s.count }

// Waiting returns the rules that wait for a container, in the order given to
// Compile.
func (s *Set) Waiting() []Waiting { return slices.Clone(s.waiting) }

// Info returns what is known about a compiled rule, filters and rules that wait
// included.
func (s *Set) Info(name string) (RuleInfo, bool) {
	info, ok := s.info[name]
	return info, ok
}

// setBuilder builds a set rule by rule.
type setBuilder struct {
	set   *Set
	atoms atomTable
}

func (b *setBuilder) add(r *rules.Rule) error {
	if _, dup := b.set.info[r.Name]; dup {
		return &rules.ExistsError{Rule: r.Name}
	}
	compiled, err := r.Compile()
	if err != nil {
		return err
	}
	info := RuleInfo{
		Name:        r.Name,
		Criticality: max(0, min(MaxCriticality, compiled.Criticality)),
		ATTACK:      slices.Clone(compiled.Attack),
		Filter:      compiled.Filter,
	}
	b.set.info[r.Name] = info
	b.set.count++

	if missing := b.missing(compiled); len(missing) > 0 {
		b.set.waiting = append(b.set.waiting, Waiting{Rule: r.Name, Containers: missing})
		return nil
	}
	p, err := b.program(compiled)
	if err != nil {
		return &rules.CompileError{
			Rule: r.Name, Statement: r.Condition, Line: r.Line, Offset: r.Offset,
			Err: fmt.Errorf("Failed to parse condition \"%s\": %w", r.Condition, err),
		}
	}
	if p.start == never && p.gene == nil {
		return nil
	}
	number := int32(len(b.set.rules))
	out := &rule{info: info, actions: slices.Clone(compiled.Actions), program: p}
	if len(r.Computers) > 0 {
		out.computers = make(map[string]struct{}, len(r.Computers))
		for _, c := range r.Computers {
			out.computers[c] = struct{}{}
		}
	}
	b.set.rules = append(b.set.rules, out)
	b.place(number, r.Selection(), p)
	return nil
}

// missing returns the containers of a rule that do not exist, sorted.
func (b *setBuilder) missing(compiled *engine.CompiledRule) []string {
	var names []string
	for _, m := range compiled.AtomMap.Values() {
		c, ok := m.(*engine.ContainerMatch)
		if !ok {
			continue
		}
		if _, ok := b.atoms.containers[c.Container]; !ok {
			names = append(names, c.Container)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// program compiles the condition over the atoms of the set.
func (b *setBuilder) program(compiled *engine.CompiledRule) (*program, error) {
	if compiled.Conditions == nil {
		return nil, errors.New("no condition")
	}
	operands := make(map[string]int32, compiled.AtomMap.Len())
	names := make([]string, 0, compiled.AtomMap.Len())
	for _, k := range compiled.AtomMap.Keys() {
		names = append(names, k.(string))
	}
	slices.Sort(names)
	if *compiled.Conditions == (engine.ConditionElement{}) && len(names) == 0 {
		return &program{start: always}, nil
	}
	used := engine.GetOperands(compiled.Conditions)
	for _, name := range names {
		if !slices.Contains(used, name) {
			continue
		}
		m, _ := compiled.AtomMap.Get(name)
		matcher, ok := m.(engine.Matcher)
		if !ok {
			return nil, fmt.Errorf("match %s is of type %T", name, m)
		}
		n, err := b.atoms.intern(matcher)
		if err != nil {
			return nil, err
		}
		operands[name] = n
	}
	p, err := newProgram(compiled.Conditions, operands)
	if err != nil {
		return nil, err
	}
	if err := p.try(compiled.Conditions, operands); err != nil {
		return nil, err
	}
	return p, nil
}

// place puts a rule into the groups that its meta section names.
func (b *setBuilder) place(number int32, sel rules.Selection, p *program) {
	var groups []*group
	switch {
	case len(sel.Channels) == 0 && len(sel.AnyChannel) == 0:
		groups = append(groups, b.set.any)
	case len(sel.Channels) == 0:
		groups = appendGroups(groups, b.set.anyIDs, sel.AnyChannel)
	}
	for _, name := range slices.Sorted(maps.Keys(sel.Channels)) {
		c := b.set.channels[name]
		if c == nil {
			c = &channelGroups{any: &group{}, ids: make(map[int64]*group)}
			b.set.channels[name] = c
		}
		if ids := sel.Channels[name]; len(ids) > 0 {
			groups = appendGroups(groups, c.ids, ids)
		} else {
			groups = append(groups, c.any)
		}
	}
	g := chooseGuard(p, b.atoms.atoms, b.set.fields)
	if g.size()*len(groups) > maxPostings {
		g = nil
	}
	for _, in := range groups {
		in.add(number, g)
	}
}

// maxPostings bounds the index entries that one rule may take.
const maxPostings = 1 << 16

func appendGroups(groups []*group, byID map[int64]*group, ids []int64) []*group {
	ids = slices.Sorted(slices.Values(ids))
	for _, id := range slices.Compact(ids) {
		g := byID[id]
		if g == nil {
			g = &group{}
			byID[id] = g
		}
		groups = append(groups, g)
	}
	return groups
}

func (b *setBuilder) finish() *Set {
	s := b.set
	s.atoms = b.atoms.atoms
	s.aside = make([]atomic.Bool, len(s.rules))
	s.any.finish()
	for _, g := range s.anyIDs {
		g.finish()
	}
	for _, c := range s.channels {
		c.any.finish()
		for _, g := range c.ids {
			g.finish()
		}
	}
	return s
}
