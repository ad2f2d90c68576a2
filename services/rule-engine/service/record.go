package ruleengine

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/services/rule-engine/internal/rules"
)

// Where a rule came from.
const (
	sourceAPI = "api"
	sourceDir = "dir"
)

// Bounds of the record before and after compression. What Decompress refuses
// or a message cannot carry must not be written.
const (
	maxRecord     = 60 << 20
	maxRecordPack = stream.MaxMessage - 64<<10
)

// record is the rule set as it stands in the bucket rules. Nothing of it is
// changed once it is shared.
type record struct {
	// Live are the rules in force, sorted by name.
	Live []storedRule `json:"live"`
	// Staged is what the next reload does to them.
	Staged staged `json:"staged"`
	// Imported has, by name, the SHA-256 of the text of each rule that was
	// last taken from the rules folder.
	Imported map[string]string `json:"imported,omitempty"`
	// Actor and Time tell of the last change.
	Actor string    `json:"actor"`
	Time  time.Time `json:"time"`
}

type staged struct {
	// Updates are new texts of live rules.
	Updates map[string]storedRule `json:"updates,omitempty"`
	// Deletes are names of live rules, sorted, none of them in Updates.
	Deletes []string `json:"deletes,omitempty"`
}

// storedRule is a rule within the record.
type storedRule struct {
	Name   string          `json:"name"`
	Text   json.RawMessage `json:"text"`
	Form   rules.Form      `json:"form"`
	Source string          `json:"source"`
}

func stored(r *rules.Rule, source string) storedRule {
	return storedRule{Name: r.Name, Text: r.Raw(), Form: r.Form, Source: source}
}

// decodeRecord reads a value of the bucket. No value is an empty rule set.
func decodeRecord(value []byte) (record, error) {
	var rec record
	if len(value) == 0 {
		return rec, nil
	}
	data, err := message.Decompress(nil, value)
	if err != nil {
		return record{}, fmt.Errorf("rule set: %w", err)
	}
	if err := json.Unmarshal(data, &rec); err != nil {
		return record{}, fmt.Errorf("rule set: %w", err)
	}
	return rec, nil
}

func (r *record) encode() ([]byte, error) {
	data, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("rule set: %w", err)
	}
	if len(data) > maxRecord {
		return nil, fault.New(fault.TooLarge, "Error loading rule: the rule set would have %d bytes, at most %d are possible", len(data), maxRecord)
	}
	value := message.Compress(nil, data)
	if len(value) > maxRecordPack {
		return nil, fault.New(fault.TooLarge, "Error loading rule: the compressed rule set would have %d bytes, at most %d are possible", len(value), maxRecordPack)
	}
	return value, nil
}

// find returns where the live rule of a name stands, or would stand.
func (r *record) find(name string) (int, bool) {
	return slices.BinarySearchFunc(r.Live, name, func(s storedRule, name string) int { return strings.Compare(s.Name, name) })
}

// put makes a rule live, in place of the one of its name.
func (r *record) put(s storedRule) {
	i, ok := r.find(s.Name)
	if ok {
		r.Live[i] = s
		return
	}
	r.Live = slices.Insert(r.Live, i, s)
}

// isStaged tells whether something waits for a reload.
func (r *record) isStaged() bool { return len(r.Staged.Updates)+len(r.Staged.Deletes) > 0 }

// add adds rules: new ones live, those whose name exists, which update must
// allow, staged. It tells whether something was staged.
func (r *record) add(list []*rules.Rule, update bool) (waits bool, err error) {
	for _, rule := range list {
		s := stored(rule, sourceAPI)
		if _, exists := r.find(rule.Name); !exists {
			if len(r.Live) >= rules.MaxRules {
				return false, fmt.Errorf("%w: more than %d rules", rules.ErrTooLarge, rules.MaxRules)
			}
			r.put(s)
			continue
		}
		if !update {
			return false, &rules.ExistsError{Rule: rule.Name}
		}
		if r.Staged.Updates == nil {
			r.Staged.Updates = make(map[string]storedRule)
		}
		r.Staged.Updates[rule.Name] = s
		r.Staged.Deletes = slices.DeleteFunc(r.Staged.Deletes, func(n string) bool { return n == rule.Name })
		waits = true
	}
	return waits, nil
}

// remove stages the deletion of a live rule. It tells whether the rule exists
// and whether the record changed.
func (r *record) remove(name string) (exists, changed bool) {
	if _, ok := r.find(name); !ok {
		return false, false
	}
	i, ok := slices.BinarySearch(r.Staged.Deletes, name)
	if ok {
		return true, false
	}
	r.Staged.Deletes = slices.Insert(r.Staged.Deletes, i, name)
	delete(r.Staged.Updates, name)
	return true, true
}

// activate makes live what is staged.
func (r *record) activate() {
	for _, s := range r.Staged.Updates {
		r.put(s)
	}
	r.Live = slices.DeleteFunc(r.Live, func(s storedRule) bool {
		_, ok := slices.BinarySearch(r.Staged.Deletes, s.Name)
		return ok
	})
	r.Staged = staged{}
}
