package rules

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"

	"github.com/0xrawsec/gene/v2/engine"
)

// wireRule holds the members of both forms. Pointers tell an absent member from
// a zero one.
type wireRule struct {
	Name      string
	Tags      []string
	Meta      wireMeta
	Matches   []string
	Condition string
	Actions   []string
}

type wireMeta struct {
	EventIDs    []int64
	Channels    []string
	Events      map[string][]int64
	Schema      *engine.Version
	Computers   []string
	Traces      []string
	Attack      []Attack `json:"ATTACK"`
	Criticality *int
	Severity    *int
	Disable     bool
	Filter      bool
}

// ParseReader reads at most MaxBodySize bytes and parses them as Parse does.
func ParseReader(r io.Reader, templates *Templates) ([]*Rule, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxBodySize+1))
	if err != nil {
		return nil, fmt.Errorf("read rules: %w", err)
	}
	if len(data) > MaxBodySize {
		return nil, fmt.Errorf("%w: a body of rules may have %d bytes", ErrTooLarge, MaxBodySize)
	}
	return Parse(data, templates)
}

// Parse reads rules from JSON objects that stand one after the other. Templates
// may be nil. It returns all rules of the body or an error: ErrEmpty, a
// *SyntaxError, an *ExistsError for two rules of one name, ErrNoName,
// ErrTooLarge, or a *CompileError that names the rule and the statement.
func Parse(data []byte, templates *Templates) ([]*Rule, error) {
	var (
		list  []*Rule
		names = make(map[string]struct{})
		dec   = json.NewDecoder(bytes.NewReader(data))
		place = locator{data: data}
	)
	for {
		end := dec.InputOffset()
		line, offset := place.next(end)
		var w wireRule
		err := dec.Decode(&w)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, &SyntaxError{Line: line, Offset: offset, Err: err}
		}
		if size := dec.InputOffset() - offset; size > MaxRuleSize {
			return nil, fmt.Errorf("%w: the rule at line %d has %d bytes, at most %d are allowed", ErrTooLarge, line, size, MaxRuleSize)
		}
		if len(list) == MaxRules {
			return nil, fmt.Errorf("%w: more than %d rules", ErrTooLarge, MaxRules)
		}
		r := w.rule()
		r.Line, r.Offset = line, offset
		if err := r.finish(templates); err != nil {
			return nil, err
		}
		if _, dup := names[r.Name]; dup {
			return nil, &ExistsError{Rule: r.Name}
		}
		names[r.Name] = struct{}{}
		list = append(list, r)
	}
	if len(list) == 0 {
		return nil, ErrEmpty
	}
	return list, nil
}

func (w *wireRule) rule() *Rule {
	r := &Rule{
		Name: w.Name, Tags: w.Tags, Actions: w.Actions, Matches: w.Matches, Condition: w.Condition,
		Computers: w.Meta.Computers, Attack: w.Meta.Attack, Disabled: w.Meta.Disable, Filter: w.Meta.Filter,
	}
	switch {
	case w.Meta.Criticality != nil:
		r.Criticality = *w.Meta.Criticality
	case w.Meta.Severity != nil:
		r.Criticality = *w.Meta.Severity
	}
	// A schema below 2 beside v1 members is a v1 rule that says so.
	v2 := w.Meta.Events != nil ||
		w.Meta.Schema != nil && !w.Meta.Schema.Below(engine.EngineMinimalRuleSchemaVersion)
	if v2 {
		r.Form = FormV2
		r.Events = w.Meta.Events
		if w.Meta.Schema != nil {
			r.Schema = *w.Meta.Schema
		}
		return r
	}
	r.Form = FormV1
	r.EventIDs, r.Channels, r.Traces = w.Meta.EventIDs, w.Meta.Channels, w.Meta.Traces
	return r
}

// finish expands templates, checks the rule and renders its text.
func (r *Rule) finish(templates *Templates) error {
	if err := r.checkMeta(); err != nil {
		return err
	}
	for i, m := range r.Matches {
		expanded, err := templates.expand(m)
		if err != nil && !r.Disabled {
			return r.errorf(m, err)
		}
		r.Matches[i] = expanded
	}
	if !r.Disabled {
		if err := r.check(); err != nil {
			return err
		}
	}
	text, err := r.render()
	if err != nil {
		return err
	}
	if len(text) > MaxRuleSize {
		return fmt.Errorf("%w: rule %q has %d bytes, at most %d are allowed", ErrTooLarge, r.Name, len(text), MaxRuleSize)
	}
	r.text = text
	return nil
}

func (r *Rule) checkMeta() error {
	if strings.TrimSpace(r.Name) == "" {
		return fmt.Errorf("%w (rule line=%d offset=%d)", ErrNoName, r.Line, r.Offset)
	}
	if len(r.Name) > MaxNameSize {
		return fmt.Errorf("%w: the name of the rule at line %d has %d bytes, at most %d are allowed", ErrTooLarge, r.Line, len(r.Name), MaxNameSize)
	}
	if strings.ContainsFunc(r.Name, unicode.IsControl) {
		return r.errorf("", errors.New("the name holds a control character"))
	}
	if r.Criticality < 0 {
		return r.errorf("", fmt.Errorf("Criticality %d is negative", r.Criticality))
	}
	if r.Form == FormV2 && r.Schema.Below(engine.EngineMinimalRuleSchemaVersion) {
		return r.errorf("", fmt.Errorf("Expecting rule version >= %s", engine.EngineMinimalRuleSchemaVersion))
	}
	if n := r.selections(); n > MaxSelections {
		return r.errorf("", fmt.Errorf("%w: it selects %d pairs of channel and event id, at most %d are allowed", ErrTooLarge, n, MaxSelections))
	}
	return nil
}

func (r *Rule) errorf(statement string, err error) *CompileError {
	return &CompileError{Rule: r.Name, Statement: statement, Line: r.Line, Offset: r.Offset, Err: err}
}

// locator finds where rules start. It only moves forward, so that the cost of
// counting lines stays linear in the size of the body.
type locator struct {
	data []byte
	pos  int64
	line int
}

// next returns line and offset of the first rule at or behind the given offset,
// of the end of the data when there is none.
func (l *locator) next(from int64) (line int, offset int64) {
	offset = int64(len(l.data))
	if i := bytes.IndexByte(l.data[from:], '{'); i >= 0 {
		offset = from + int64(i)
	}
	l.line += bytes.Count(l.data[l.pos:offset], []byte{'\n'})
	l.pos = offset
	return l.line + 1, offset
}
