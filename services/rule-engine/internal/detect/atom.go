package detect

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/0xrawsec/gene/v2/engine"
)

type atomKind uint8

const (
	atomEqual atomKind = iota
	atomRegexp
	atomWords
	atomRun
	atomBits
	atomLess
	atomLessEqual
	atomGreater
	atomGreaterEqual
	atomSameField
	atomContainer
)

// atom is one match of a rule. Rules share equal atoms.
type atom struct {
	kind  atomKind
	field int32
	// other is the second field of atomSameField.
	other int32
	// text is the value of atomEqual.
	text string

	// number is the operand of the comparisons, mask that of atomBits.
	number float64
	mask   int64
	// expr is the expression of atomRegexp and atomContainer.
	expr *lazyRegexp
	// words decides atomWords, and rules values out for the others.
	words *wordMatcher
	// run decides atomRun.
	run *runeRun
	// list is what is known about the expression.
	list wordList
	// group and lines are those of atomContainer.
	group int
	lines Lines
}

// lazyRegexp compiles an expression when it is first needed. Most never are.
type lazyRegexp struct {
	expr string
	once sync.Once
	re   *regexp.Regexp
}

func (l *lazyRegexp) get() *regexp.Regexp {
	l.once.Do(func() { l.re = regexp.MustCompile(l.expr) })
	return l.re
}

// probe records which paths a gene matcher reads. It is an event in which every
// path has an empty value.
type probe struct {
	paths []*engine.XPath
}

func (p *probe) Get(path *engine.XPath) (any, bool) {
	p.paths = append(p.paths, path)
	return "", true
}

func (*probe) Set(*engine.XPath, any) error    { return nil }
func (*probe) SetDetection(*engine.Detection)  {}
func (*probe) GetDetection() *engine.Detection { return nil }
func (*probe) Channel() string                 { return "" }
func (*probe) Computer() string                { return "" }
func (*probe) EventID() int64                  { return 0 }
func (*probe) Timestamp() time.Time            { return time.Time{} }

// atomTable gives equal matches the same number.
type atomTable struct {
	atoms      []*atom
	numbers    map[string]int32
	fields     *fieldTable
	containers map[string]Lines
}

// intern returns the number of the atom that does what the gene matcher does.
func (t *atomTable) intern(m engine.Matcher) (int32, error) {
	var (
		key   string
		build func() (*atom, error)
	)
	switch m := m.(type) {
	case *engine.FieldMatch:
		paths, err := pathsOf(m)
		if err != nil {
			return 0, err
		}
		fields := make([]int32, len(paths))
		for i, p := range paths {
			fields[i] = t.fields.intern(p)
		}
		key = fmt.Sprintf("f%v\x00%s\x00%s", fields, m.Operator, m.Value)
		build = func() (*atom, error) { return fieldAtom(m, fields) }
	case *engine.ContainerMatch:
		p := engine.Path("/Event/EventData/" + m.Operand)
		field := t.fields.intern(p)
		key = fmt.Sprintf("c%d\x00%s\x00%s\x00%s", field, m.Container, m.RexName, m.Regexp)
		build = func() (*atom, error) { return containerAtom(m, field, t.containers[m.Container]) }
	default:
		return 0, fmt.Errorf("unknown kind of match %T", m)
	}
	if n, ok := t.numbers[key]; ok {
		return n, nil
	}
	a, err := build()
	if err != nil {
		return 0, err
	}
	n := int32(len(t.atoms))
	t.atoms = append(t.atoms, a)
	t.numbers[key] = n
	return n, nil
}

// pathsOf asks a field match which fields it reads. A second one means that the
// match compares two fields.
func pathsOf(m *engine.FieldMatch) ([]*engine.XPath, error) {
	var p probe
	m.Match(&p)
	if len(p.paths) < 1 || len(p.paths) > 2 {
		return nil, fmt.Errorf("match %s reads %d fields", m.Name, len(p.paths))
	}
	return p.paths, nil
}

func fieldAtom(m *engine.FieldMatch, fields []int32) (*atom, error) {
	a := &atom{field: fields[0]}
	if len(fields) == 2 {
		a.kind, a.other = atomSameField, fields[1]
		return a, nil
	}
	var err error
	switch m.Operator {
	case "=":
		a.kind, a.text = atomEqual, m.Value
	case "~=":
		a.setExpr("(" + m.Value + ")")
	case "&=":
		a.kind = atomBits
		a.mask, err = strconv.ParseInt(m.Value, 0, 64)
	case "<", "<=", ">", ">=":
		a.kind = map[string]atomKind{
			"<": atomLess, "<=": atomLessEqual, ">": atomGreater, ">=": atomGreaterEqual,
		}[m.Operator]
		var ok bool
		if a.number, ok = parseNumber(m.Value); !ok {
			err = fmt.Errorf("%q is no number", m.Value)
		}
	default:
		err = fmt.Errorf("unknown operator %q", m.Operator)
	}
	return a, err
}

// setExpr makes the atom match an expression, through its words where they say
// everything.
func (a *atom) setExpr(expr string) {
	a.kind = atomRegexp
	a.expr = &lazyRegexp{expr: expr}
	a.list = analyse(expr)
	switch run := findRun(expr); {
	case run != nil:
		a.kind, a.run = atomRun, run
	case a.list.exact:
		a.kind = atomWords
		a.words = newWordMatcher(a.list.words)
	case a.list.required != nil:
		words := make([]word, len(a.list.required))
		for i, w := range a.list.required {
			words[i] = word{text: w}
		}
		a.words = newWordMatcher(words)
	}
}

func containerAtom(m *engine.ContainerMatch, field int32, lines Lines) (*atom, error) {
	re, err := regexp.Compile(m.Regexp)
	if err != nil {
		return nil, err
	}
	group := slices.Index(re.SubexpNames(), m.RexName)
	if group < 1 {
		return nil, errors.New("no such group: " + m.RexName)
	}
	a := &atom{field: field}
	a.setExpr(m.Regexp)
	a.kind, a.group, a.lines = atomContainer, group, lines
	return a, nil
}

// eval decides the atom on the current event of the worker.
func (a *atom) eval(e *event) bool {
	v := e.field(a.field)
	return v != nil && a.evalValue(e, v)
}

// evalValue decides the atom on the value of its field.
func (a *atom) evalValue(e *event, v *value) bool {
	switch a.kind {
	case atomEqual:
		return string(v.text) == a.text
	case atomWords:
		return a.words.match(v.text, e.fold(v))
	case atomRun:
		return len(v.text) >= a.run.least && a.run.in(v.text)
	case atomRegexp:
		return a.possible(e, v) && a.expr.get().Match(v.text)
	case atomSameField:
		o := e.field(a.other)
		return o != nil && string(o.text) == string(v.text)
	case atomContainer:
		return a.inContainer(e, v)
	case atomBits:
		n, err := strconv.ParseInt(string(v.text), 0, 64)
		return err == nil && n&a.mask == a.mask
	}
	n, ok := parseNumber(string(v.text))
	if !ok {
		return false
	}
	switch a.kind {
	case atomLess:
		return n < a.number
	case atomLessEqual:
		return n <= a.number
	case atomGreater:
		return n > a.number
	default:
		return n >= a.number
	}
}

// possible reports whether the expression of the atom can match a value, as far
// as that is cheap to tell.
func (a *atom) possible(e *event, v *value) bool {
	if len(v.text) < a.list.length || a.list.wide && isASCII(v.text) {
		return false
	}
	return a.words == nil || a.words.match(v.text, e.fold(v))
}

func (a *atom) inContainer(e *event, v *value) bool {
	if len(a.lines) == 0 || !a.possible(e, v) {
		return false
	}
	loc := a.expr.get().FindSubmatchIndex(v.text)
	if loc == nil {
		return false
	}
	// A group that took no part in the match stands for the empty string.
	var extract string
	if start, end := loc[2*a.group], loc[2*a.group+1]; start >= 0 {
		extract = strings.ToLower(string(v.text[start:end]))
	}
	_, ok := a.lines[extract]
	return ok
}

// parseNumber reads numbers as gene does: integers with the prefixes of Go, and
// everything that strconv takes for a float.
func parseNumber(s string) (float64, bool) {
	if n, err := strconv.ParseInt(s, 0, 64); err == nil {
		return float64(n), true
	}
	f, err := strconv.ParseFloat(s, 64)
	return f, err == nil
}
