package report

import (
	"slices"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
)

// Bounds of the sets of techniques and tactics, far above what ATT&CK has.
const (
	maxReferences = 1000
	maxReference  = 128
)

// Histogram tells how often each criticality, from 0 to
// event.MaxCriticality, occurs.
type Histogram [event.MaxCriticality + 1]int64

// Stats are the statistics of an endpoint's alerts, without the names of
// their signatures. The zero value has no alerts. Its size is bounded
// whatever is added.
type Stats struct {
	// Alerts is how many were added, Signatures how many names they had.
	Alerts     int64 `json:"alerts"`
	Signatures int64 `json:"signatures"`
	// AlertCriticality counts each alert under the sum of the criticalities
	// of its rules, at most event.MaxCriticality.
	AlertCriticality Histogram `json:"alert-criticality"`
	// RuleCriticality counts each name under its rule's criticality. Rules
	// of criticality 0 and unknown names are not in it.
	RuleCriticality Histogram `json:"rule-criticality"`
	// Techniques and Tactics are sets, in order.
	Techniques []string `json:"techniques,omitempty"`
	Tactics    []string `json:"tactics,omitempty"`
	// Start and Stop are the least and the greatest time of an alert.
	Start time.Time `json:"start"`
	Stop  time.Time `json:"stop"`
}

// Add adds an alert that stands at t, carries these names in this order, as
// often as they occur, and of whose names the manager knows rules.
func (s *Stats) Add(t time.Time, names []string, rules []message.RuleInfo) {
	known := make(map[string]*message.RuleInfo, len(rules))
	for i := range rules {
		known[rules[i].Name] = &rules[i]
	}
	if s.Alerts == 0 || t.Before(s.Start) {
		s.Start = t
	}
	if s.Alerts == 0 || t.After(s.Stop) {
		s.Stop = t
	}
	total := 0
	for _, name := range names {
		s.Signatures++
		rule := known[name]
		if rule == nil {
			continue
		}
		for _, a := range rule.ATTACK {
			s.Techniques = insert(s.Techniques, a.ID)
			s.Tactics = insert(s.Tactics, a.Tactic)
		}
		if c := bound(rule.Criticality); c > 0 {
			s.RuleCriticality[c]++
			total = bound(total + c)
		}
	}
	s.AlertCriticality[total]++
	s.Alerts++
}

// bound limits a criticality to what it may be.
func bound(criticality int) int { return max(0, min(event.MaxCriticality, criticality)) }

// insert adds an element to an ordered set unless it, or the set, is too
// large.
func insert(set []string, s string) []string {
	i, found := slices.BinarySearch(set, s)
	if found || len(s) > maxReference || len(set) >= maxReferences {
		return set
	}
	return slices.Insert(set, i, s)
}

// Storable returns t, or the same moment in UTC, or fallback in UTC: the
// first of them that RFC 3339 can express. A line may carry a time that
// parses and yet cannot be written, such as one with an offset of 24 hours.
func Storable(t, fallback time.Time) time.Time {
	for _, candidate := range []time.Time{t, t.UTC(), fallback.UTC()} {
		if _, err := candidate.MarshalJSON(); err == nil {
			return candidate
		}
	}
	return time.Unix(0, 0).UTC()
}
