package detect

import (
	"maps"
	"slices"
)

// guard is a condition that every event a rule matches fulfils: one of the given
// words is in one of the given fields. A nil guard says nothing.
type guard struct {
	// contains and equals hold folded words by field.
	contains map[int32][]string
	equals   map[int32][]string
	// present holds fields that need only be there.
	present []int32
}

// size is the number of entries that the guard takes in a group.
func (g *guard) size() int {
	if g == nil {
		return 1
	}
	n := len(g.present)
	for _, words := range g.contains {
		n += len(words)
	}
	for _, words := range g.equals {
		n += len(words)
	}
	return n
}

// Costs of guards, in the unit of rarity.
const (
	costEqual   = 3
	costPresent = 1 << 10
	costNever   = 1 << 30
)

// chooseGuard finds the guard of a program that the fewest events fulfil, as far
// as words tell. It returns nil when the rule can match without any of its
// atoms being true.
func chooseGuard(p *program, atoms []*atom, fields *fieldTable) *guard {
	if p.gene != nil || p.start < 0 {
		return nil
	}
	// An event that matches takes a path from the start to the end "always".
	// The guard cuts all of these paths at edges where an atom is true. A
	// decision stands behind those it leads to, so costs build up in order.
	price := make(map[int32]int)
	for _, d := range p.decisions {
		if _, ok := price[d.atom]; !ok {
			price[d.atom] = atomPrice(atoms[d.atom], fields)
		}
	}
	costs := make([]int, len(p.decisions))
	cost := func(n int32) int {
		switch n {
		case always:
			return costNever
		case never:
			return 0
		}
		return costs[n]
	}
	for n, d := range p.decisions {
		costs[n] = min(costNever, cost(d.other)+min(price[d.atom], cost(d.then)))
	}
	if costs[p.start] >= costNever {
		return nil
	}
	g := &guard{contains: make(map[int32][]string), equals: make(map[int32][]string)}
	visited := make([]bool, len(p.decisions))
	taken := make(map[int32]bool)
	todo := []int32{p.start}
	for len(todo) > 0 {
		n := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if n < 0 || visited[n] {
			continue
		}
		visited[n] = true
		d := p.decisions[n]
		todo = append(todo, d.other)
		if price[d.atom] > cost(d.then) {
			todo = append(todo, d.then)
			continue
		}
		if !taken[d.atom] {
			taken[d.atom] = true
			g.add(atoms[d.atom])
		}
	}
	return g
}

// atomPrice estimates how often an atom would make its rule be looked at.
func atomPrice(a *atom, fields *fieldTable) int {
	if fields.odd[a.field] {
		return costNever
	}
	contains, equals, ok := a.guardWords()
	if !ok {
		return costPresent
	}
	price := costEqual * len(equals)
	for _, w := range contains {
		price += rarity(w)
	}
	return min(price, costPresent)
}

// guardWords returns the folded words of which one is in the field, or equals
// it, whenever the atom is true. It reports false when there are none, or when
// one of them is too short to be searched.
func (a *atom) guardWords() (contains, equals []string, ok bool) {
	switch a.kind {
	case atomEqual:
		return nil, []string{foldString(a.text)}, true
	case atomWords:
		for _, w := range a.list.words {
			switch {
			case w.begin && w.end:
				equals = append(equals, foldString(w.text))
			case len(w.text) < gram:
				return nil, nil, false
			default:
				contains = append(contains, foldString(w.text))
			}
		}
		// Folding can shorten a word.
		return contains, equals, len(contains) == 0 || shortest(contains) >= gram
	case atomRegexp, atomContainer:
		if a.list.required != nil && shortest(a.list.required) >= gram {
			return a.list.required, nil, true
		}
	}
	return nil, nil, false
}

func (g *guard) add(a *atom) {
	contains, equals, ok := a.guardWords()
	if !ok || len(contains) == 0 && len(equals) == 0 && a.kind != atomWords {
		g.present = append(g.present, a.field)
		return
	}
	if len(contains) > 0 {
		g.contains[a.field] = append(g.contains[a.field], contains...)
	}
	if len(equals) > 0 {
		g.equals[a.field] = append(g.equals[a.field], equals...)
	}
}

// group is a list of rules that look at the same events, arranged by guard.
type group struct {
	// always holds the rules without a guard.
	always []int32
	fields []guardedField

	building map[int32]*guardedField
}

// guardedField holds what the guards of a group say about one field.
type guardedField struct {
	field int32
	// present holds the rules to look at when the field is there.
	present []int32
	// equals maps folded values to rules.
	equals map[string][]int32
	// index finds words, rules holds the rules of each.
	index *wordIndex
	rules [][]int32

	contains map[string][]int32
}

// add puts a rule into the group.
func (g *group) add(number int32, gd *guard) {
	if gd == nil {
		g.always = append(g.always, number)
		return
	}
	for _, f := range gd.present {
		s := g.slot(f)
		s.present = appendOnce(s.present, number)
	}
	for f, words := range gd.equals {
		s := g.slot(f)
		for _, w := range words {
			s.equals[w] = appendOnce(s.equals[w], number)
		}
	}
	for f, words := range gd.contains {
		s := g.slot(f)
		for _, w := range words {
			s.contains[w] = appendOnce(s.contains[w], number)
		}
	}
}

// appendOnce appends the number of a rule. Rules are added one after the other.
func appendOnce(list []int32, number int32) []int32 {
	if n := len(list); n > 0 && list[n-1] == number {
		return list
	}
	return append(list, number)
}

func (g *group) slot(field int32) *guardedField {
	if g.building == nil {
		g.building = make(map[int32]*guardedField)
	}
	s := g.building[field]
	if s == nil {
		s = &guardedField{field: field, equals: make(map[string][]int32), contains: make(map[string][]int32)}
		g.building[field] = s
	}
	return s
}

// finish builds the indexes.
func (g *group) finish() {
	for _, f := range slices.Sorted(maps.Keys(g.building)) {
		s := g.building[f]
		if len(s.contains) > 0 {
			words := slices.Sorted(maps.Keys(s.contains))
			s.index = newWordIndex(words)
			for _, w := range words {
				s.rules = append(s.rules, s.contains[w])
			}
		}
		s.contains = nil
		if len(s.equals) == 0 {
			s.equals = nil
		}
		g.fields = append(g.fields, *s)
	}
	g.building = nil
}
