package detect

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/0xrawsec/gene/v2/engine"

	"github.com/nightjar-edr/nightjar/services/rule-engine/internal/rules"
)

// plain is gene itself, the reference for everything this package computes.
type plain struct {
	engine *engine.Engine
	order  map[string]int
}

// failer is what tests and properties have in common.
type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

func newPlain(tb failer, list []*rules.Rule, containers map[string][]string) *plain {
	tb.Helper()
	e := engine.NewEngine()
	e.ShowActions, e.ShowAttack = true, true
	for name, lines := range containers {
		for _, line := range lines {
			e.AddToContainer(name, line)
		}
	}
	p := &plain{engine: e, order: make(map[string]int)}
	for i, r := range list {
		text, exact := r.TextAs(rules.FormV2)
		if !exact {
			tb.Fatalf("rule %s cannot be given to gene", r.Name)
		}
		if err := e.LoadString(text); err != nil {
			tb.Fatalf("gene refuses %s: %v", r.Name, err)
		}
		p.order[r.Name] = i
	}
	return p
}

// detect decodes a line and gives it to gene.
func (p *plain) detect(line []byte) Detection {
	var event engine.GenericEvent
	if err := json.Unmarshal(line, &event); err != nil {
		var te *json.UnmarshalTypeError
		if !errors.As(err, &te) || event == nil {
			return Detection{}
		}
	}
	// MatchOrFilter tells about ATT&CK and actions only through the event, where
	// it can store them only under an object named Event.
	holder := &recorder{GenericEvent: event}
	names, criticality, filtered := p.engine.MatchOrFilter(holder)
	slices.SortFunc(names, func(a, b string) int { return p.order[a] - p.order[b] })
	d := Detection{Criticality: criticality, Filtered: filtered}
	if len(names) == 0 {
		return d
	}
	d.Signatures = names
	d.ATTACK = holder.detection.ATTACK
	for _, a := range holder.detection.Actions.Slice() {
		d.Actions = append(d.Actions, a.(string))
	}
	return d
}

type recorder struct {
	engine.GenericEvent
	detection *engine.Detection
}

func (r *recorder) SetDetection(d *engine.Detection) { r.detection = d }

// outline writes a detection so that two can be compared: what gene leaves
// unordered is sorted.
func outline(d Detection) string {
	actions := slices.Sorted(slices.Values(d.Actions))
	var attack []string
	for _, a := range d.ATTACK {
		attack = append(attack, fmt.Sprintf("%q", a))
	}
	slices.Sort(attack)
	return fmt.Sprintf("%q %d filtered=%t attack=%s actions=%q",
		d.Signatures, d.Criticality, d.Filtered, strings.Join(attack, ","), actions)
}

func mustParse(tb testing.TB, text string) []*rules.Rule {
	tb.Helper()
	list, err := rules.Parse([]byte(text), nil)
	if err != nil {
		tb.Fatalf("parse: %v", err)
	}
	return list
}

// linesOf makes containers of their lines.
func linesOf(containers map[string][]string) map[string]Lines {
	all := make(map[string]Lines, len(containers))
	for name, lines := range containers {
		all[name] = make(Lines, len(lines))
		for _, line := range lines {
			all[name].Add(line)
		}
	}
	return all
}

func mustCompile(tb testing.TB, list []*rules.Rule, containers map[string][]string) *Set {
	tb.Helper()
	set, _, err := Compile(list, linesOf(containers), WithPanicHandler(func(rule string, v any) {
		tb.Errorf("rule %q panicked: %v", rule, v)
	}))
	if err != nil {
		tb.Fatalf("compile: %v", err)
	}
	return set
}
