package event

import (
	"encoding/json"
	"math"
	"slices"
	"strconv"
)

// MaxCriticality is the highest criticality of a rule, a mark or an alert.
const MaxCriticality = 10

// Mark is what an agent found in an event before it sent it.
type Mark struct {
	// Signatures are the names of the rules that matched, never empty, in
	// the agent's order and without repetitions.
	Signatures []string
	// Criticality is the agent's, bounded to 0..MaxCriticality.
	Criticality int
	// ATTACK are the ATT&CK references the agent gave, as it wrote them.
	ATTACK []Attack
}

// Attack is a reference to MITRE ATT&CK as gene writes it.
type Attack struct {
	ID          string `json:"ID"`
	Tactic      string `json:"Tactic"`
	Description string `json:"Description,omitempty"`
	Reference   string `json:"Reference"`
}

// AgentMark returns the mark that the agent made, or nil. A mark is a
// non-empty list of strings: Signature in /Event/GeneInfo or
// /Event/Detection, rules in Kunai's /detection. Anything else is no mark.
func AgentMark(line []byte, info *Info) *Mark {
	var mark *Mark
	for _, place := range [...]struct {
		span        Span
		names, rate string
	}{
		{info.GeneInfo, "Signature", "Criticality"},
		{info.Detection, "Signature", "Criticality"},
		{info.Kunai, "rules", "severity"},
	} {
		if !place.span.Present() || line[place.span.Start] != '{' {
			continue
		}
		var members map[string]json.RawMessage
		if json.Unmarshal(place.span.Of(line), &members) != nil {
			continue
		}
		names := stringList(members[place.names])
		if len(names) == 0 {
			continue
		}
		if mark == nil {
			mark = &Mark{}
		}
		mark.Signatures = Union(mark.Signatures, names)
		mark.Criticality = max(mark.Criticality, criticality(members[place.rate]))
		var attack []Attack
		if json.Unmarshal(members["ATTACK"], &attack) == nil {
			mark.ATTACK = UnionAttack(mark.ATTACK, attack)
		}
	}
	return mark
}

// GeneInfoSays tells whether /Event/GeneInfo names exactly these signatures, in
// this order, with this criticality.
func GeneInfoSays(line []byte, info *Info, signatures []string, criticality int) bool {
	if !info.GeneInfo.Present() || line[info.GeneInfo.Start] != '{' {
		return false
	}
	var members map[string]json.RawMessage
	if json.Unmarshal(info.GeneInfo.Of(line), &members) != nil {
		return false
	}
	return string(members["Criticality"]) == strconv.Itoa(criticality) && slices.Equal(stringList(members["Signature"]), signatures)
}

// stringList returns the strings of a JSON list, nil unless every element is
// a string.
func stringList(raw json.RawMessage) []string {
	var elements []json.RawMessage
	if json.Unmarshal(raw, &elements) != nil {
		return nil
	}
	list := make([]string, len(elements))
	for i, e := range elements {
		if len(e) == 0 || e[0] != '"' || json.Unmarshal(e, &list[i]) != nil {
			return nil
		}
	}
	return list
}

// criticality bounds a JSON number to 0..MaxCriticality; other types are 0.
func criticality(raw json.RawMessage) int {
	var f float64
	if json.Unmarshal(raw, &f) != nil {
		return 0
	}
	return int(math.Max(0, math.Min(MaxCriticality, f)))
}

// Union appends to a the strings of b that a does not hold yet. It never
// writes into a's own array.
func Union(a, b []string) []string {
	seen := make(map[string]struct{}, len(a)+len(b))
	out := make([]string, 0, len(a)+len(b))
	for _, list := range [...][]string{a, b} {
		for _, s := range list {
			if _, ok := seen[s]; !ok {
				seen[s] = struct{}{}
				out = append(out, s)
			}
		}
	}
	return out
}

// UnionAttack appends to a the references of b whose technique and tactic a
// does not hold yet.
func UnionAttack(a, b []Attack) []Attack {
	type key struct{ id, tactic string }
	seen := make(map[key]struct{}, len(a)+len(b))
	var out []Attack
	for _, list := range [...][]Attack{a, b} {
		for _, t := range list {
			k := key{t.ID, t.Tactic}
			if _, ok := seen[k]; !ok {
				seen[k] = struct{}{}
				out = append(out, t)
			}
		}
	}
	return out
}
