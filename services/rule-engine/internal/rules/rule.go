package rules

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/0xrawsec/gene/v2/engine"
)

// Limits on rules. They keep the cost of one rule, and of one set, bounded.
const (
	// MaxRuleSize is the largest text of one rule in bytes, before and after
	// the expansion of templates.
	MaxRuleSize = 1 << 20
	// MaxRegexpSize is the largest regular expression of one match in bytes.
	// Published lists of vulnerable drivers reach 220 KiB in one expression.
	MaxRegexpSize = 256 << 10
	// MaxRules is the largest number of rules in one body and in one set.
	MaxRules = 100_000
	// MaxBodySize is the largest body that ParseReader reads, in bytes.
	MaxBodySize = 256 << 20
	// MaxConditionSize is the largest condition in bytes.
	MaxConditionSize = 64 << 10
	// MaxSelections is the largest number of pairs of channel and event id
	// that one rule may select.
	MaxSelections = 1 << 16
	// MaxNameSize is the largest name of a rule in bytes.
	MaxNameSize = 1 << 10
)

// Form is the format in which a rule is written.
type Form uint8

// The forms of a rule.
const (
	// FormV1 selects events with Meta.EventIDs and Meta.Channels.
	FormV1 Form = 1
	// FormV2 selects events with Meta.Events and has a Meta.Schema.
	FormV2 Form = 2
)

// String returns "v1" or "v2".
func (f Form) String() string {
	return fmt.Sprintf("v%d", uint8(f))
}

// Attack is a reference to a MITRE ATT&CK technique.
type Attack = engine.Attack

// Rule is one rule that passed all checks. Its text is the one after the
// expansion of templates.
type Rule struct {
	// Name identifies the rule. It is never empty.
	Name string
	// Form is the form in which the rule was written.
	Form Form
	// Tags, Actions and Computers are as given; nil when they were absent.
	Tags      []string
	Actions   []string
	Computers []string
	// Attack holds the ATT&CK techniques in the order given.
	Attack []Attack
	// Criticality is as given and never negative. An engine counts at most 10.
	Criticality int
	// Disabled rules are kept and listed, but not compiled. Their statements
	// and their condition are not checked.
	Disabled bool
	// Filter rules mark events to be kept without raising an alert.
	Filter bool
	// Matches and Condition are the detection itself.
	Matches   []string
	Condition string

	// EventIDs, Channels and Traces are set in form v1 only.
	EventIDs []int64
	Channels []string
	Traces   []string

	// Events and Schema are set in form v2 only.
	Events map[string][]int64
	Schema engine.Version

	// Line, from 1, and Offset, in bytes from 0, say where the rule started
	// in the body it was read from.
	Line   int
	Offset int64

	// Warnings name oddities that do not keep the rule from working, such as
	// a match that the condition does not use.
	Warnings []string

	text string
}

// Text returns the rule as one line of JSON in the form it came in, members in
// the order in which a manager lists them. Members that are no part of the
// form are gone, absent arrays are null, and '<', '>' and '&' are escaped as
// encoding/json does. Parse gives the same rule from it.
func (r *Rule) Text() string {
	return r.text
}

// Raw returns Text for embedding in a larger JSON document.
func (r *Rule) Raw() json.RawMessage {
	return json.RawMessage(r.text)
}

// TextAs returns the rule in the given form. Exact is false when that form
// cannot select exactly the same events; the text then selects more of them:
//
//   - v2 to v1: all event ids apply to all channels, so the selection is wider
//     when the channels have different ids;
//   - v1 to v2: event ids without a channel cannot be expressed, so that the
//     text selects every event.
//
// Traces have no counterpart in v2 and do not count as a difference.
func (r *Rule) TextAs(form Form) (text string, exact bool) {
	if form == r.Form {
		return r.text, true
	}
	c := *r
	c.Form = form
	switch form {
	case FormV1:
		exact = c.toV1()
	default:
		exact = c.toV2()
	}
	text, err := c.render()
	if err != nil {
		// Every member is a plain value, so encoding cannot fail.
		return r.text, false
	}
	return text, exact
}

func (r *Rule) toV1() (exact bool) {
	exact = true
	channels := slices.Sorted(maps.Keys(r.Events))
	ids := make([]int64, 0)
	anyID := false
	for i, ch := range channels {
		list := r.Events[ch]
		if len(list) == 0 {
			anyID = true
		}
		if i > 0 && !sameIDs(list, r.Events[channels[0]]) {
			exact = false
		}
		ids = append(ids, list...)
	}
	if len(channels) > 1 || !exact {
		slices.Sort(ids)
		ids = slices.Compact(ids)
	}
	if anyID {
		ids = ids[:0]
	}
	r.Channels, r.EventIDs, r.Traces = channels, ids, nil
	if r.Channels == nil {
		r.Channels = []string{}
	}
	r.Events, r.Schema = nil, engine.Version{}
	return exact
}

func (r *Rule) toV2() (exact bool) {
	r.Events = make(map[string][]int64, len(r.Channels))
	ids := r.EventIDs
	if ids == nil {
		ids = []int64{}
	}
	for _, ch := range r.Channels {
		r.Events[ch] = ids
	}
	exact = len(r.Channels) > 0 || len(ids) == 0
	r.Schema = engine.EngineMinimalRuleSchemaVersion
	r.Channels, r.EventIDs, r.Traces = nil, nil, nil
	return exact
}

func sameIDs(a, b []int64) bool {
	a, b = slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))
	return slices.Equal(slices.Compact(a), slices.Compact(b))
}

// Selection says which events a rule looks at, whatever its form.
type Selection struct {
	// Channels maps a channel to its event ids. No ids means every event of
	// the channel.
	Channels map[string][]int64
	// AnyChannel holds event ids that are selected on every channel. It is
	// set only when Channels is empty. Both empty means every event.
	AnyChannel []int64
}

// Selection returns which events the rule looks at.
func (r *Rule) Selection() Selection {
	if r.Form == FormV2 {
		return Selection{Channels: r.Events}
	}
	if len(r.Channels) == 0 {
		return Selection{AnyChannel: r.EventIDs}
	}
	s := Selection{Channels: make(map[string][]int64, len(r.Channels))}
	for _, ch := range r.Channels {
		s.Channels[ch] = r.EventIDs
	}
	return s
}

// selections counts the pairs of channel and id, a whole channel being one.
func (r *Rule) selections() int {
	if r.Form == FormV1 {
		return max(1, len(r.Channels)) * max(1, len(r.EventIDs))
	}
	n := 0
	for _, ids := range r.Events {
		n += max(1, len(ids))
	}
	return n
}

// The members and their order are those of a WHIDS manager (v1) and of gene
// (v2), of which clients see every byte.
type (
	listedV1 struct {
		Name      string
		Tags      []string
		Meta      listedMetaV1
		Matches   []string
		Condition string
		Actions   []string
	}
	listedMetaV1 struct {
		EventIDs    []int64
		Channels    []string
		Computers   []string
		Traces      []string `json:",omitempty"`
		ATTACK      []Attack `json:",omitempty"`
		Criticality int
		Disable     bool
		Filter      bool
	}
	listedV2 struct {
		Name      string
		Tags      []string
		Meta      listedMetaV2
		Matches   []string
		Condition string
		Actions   []string
	}
	listedMetaV2 struct {
		Events      map[string][]int64
		Computers   []string
		ATTACK      []Attack `json:",omitempty"`
		Criticality int
		Disable     bool
		Filter      bool
		Schema      engine.Version
	}
)

func (r *Rule) render() (string, error) {
	var doc any
	if r.Form == FormV1 {
		doc = listedV1{
			Name: r.Name, Tags: r.Tags,
			Meta: listedMetaV1{
				EventIDs: r.EventIDs, Channels: r.Channels, Computers: r.Computers, Traces: r.Traces,
				ATTACK: r.Attack, Criticality: r.Criticality, Disable: r.Disabled, Filter: r.Filter,
			},
			Matches: r.Matches, Condition: r.Condition, Actions: r.Actions,
		}
	} else {
		doc = listedV2{
			Name: r.Name, Tags: r.Tags,
			Meta: listedMetaV2{
				Events: r.Events, Computers: r.Computers, ATTACK: r.Attack, Criticality: r.Criticality,
				Disable: r.Disabled, Filter: r.Filter, Schema: r.Schema,
			},
			Matches: r.Matches, Condition: r.Condition, Actions: r.Actions,
		}
	}
	b, err := json.Marshal(doc)
	if err != nil {
		return "", fmt.Errorf("encode rule %q: %w", r.Name, err)
	}
	return string(b), nil
}
