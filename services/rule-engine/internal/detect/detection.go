package detect

import (
	"slices"

	"github.com/nightjar-edr/nightjar/services/rule-engine/internal/rules"
)

// MaxCriticality is the largest criticality of a rule and of a detection.
const MaxCriticality = 10

// Attack is a reference to a MITRE ATT&CK technique.
type Attack = rules.Attack

// RuleInfo is what is known about one compiled rule.
type RuleInfo struct {
	// Name is the name of the rule.
	Name string
	// Criticality is between 0 and MaxCriticality.
	Criticality int
	// ATTACK holds the techniques in the order of the rule. It is shared and
	// must not be modified.
	ATTACK []Attack
	// Filter is true for a rule that keeps events without raising an alert.
	Filter bool
}

// Detection is what the rules of a set say about one event. The zero value says
// that no rule matched. It holds nothing of the event.
type Detection struct {
	// Signatures holds the names of the matching rules that are no filters, in
	// the order in which the rules were given to Compile.
	Signatures []string
	// Criticality is the sum over Signatures, at most MaxCriticality.
	Criticality int
	// ATTACK holds the techniques of the matching rules, each id once.
	ATTACK []Attack
	// Actions holds the actions of the matching rules, each once.
	Actions []string
	// Filtered is true when a filter rule matched, whether or not others did.
	Filtered bool
	// Rules has one entry for each entry of Signatures.
	Rules []RuleInfo
	// Unmarked is true when the event was read and has none of the members
	// that an agent's mark stands in: GeneInfo and Detection of Event, and
	// detection. It says nothing about the rules.
	Unmarked bool
}

// Alert reports whether a rule matched that is no filter.
func (d *Detection) Alert() bool {
	return len(d.Signatures) > 0
}

// add notes that a rule matched. It is called in the order of the set.
func (d *Detection) add(r *rule) {
	if r.info.Filter {
		d.Filtered = true
		return
	}
	d.Signatures = append(d.Signatures, r.info.Name)
	d.Rules = append(d.Rules, r.info)
	d.Criticality = min(MaxCriticality, d.Criticality+r.info.Criticality)
	for _, a := range r.info.ATTACK {
		if !slices.ContainsFunc(d.ATTACK, func(b Attack) bool { return a.ID == b.ID }) {
			d.ATTACK = append(d.ATTACK, a)
		}
	}
	for _, a := range r.actions {
		if !slices.Contains(d.Actions, a) {
			d.Actions = append(d.Actions, a)
		}
	}
}
