package rules

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrEmpty reports a body without any rule.
	ErrEmpty = errors.New("no rule given")
	// ErrNoName reports a rule without a name.
	ErrNoName = errors.New("rule without a name")
	// ErrExists reports a second rule of the same name.
	ErrExists = errors.New("rule already exists")
	// ErrTooLarge reports a rule, a body or a set beyond its limit.
	ErrTooLarge = errors.New("too large")
	// ErrTemplate reports a template that is unknown or cannot be read.
	ErrTemplate = errors.New("template")
)

// SyntaxError reports text that is no rule at all.
type SyntaxError struct {
	// Line, from 1, and Offset, in bytes from 0, say where the rule starts.
	Line   int
	Offset int64
	// Err says what is wrong.
	Err error
}

// Error returns the text that a WHIDS manager gives.
func (e *SyntaxError) Error() string {
	return fmt.Sprintf("JSON parsing (rule line=%d offset=%d) (error=%s)", e.Line, e.Offset, jsonText(e.Err))
}

// Unwrap returns the error of the JSON decoder.
func (e *SyntaxError) Unwrap() error { return e.Err }

// jsonText words type errors with the names that WHIDS has for its types, which
// do not change with the version of encoding/json.
func jsonText(err error) string {
	var te *json.UnmarshalTypeError
	if !errors.As(err, &te) {
		return err.Error()
	}
	if te.Field == "" {
		return fmt.Sprintf("json: cannot unmarshal %s into Go value of type rules.Rule", te.Value)
	}
	owner := "Rule"
	switch path := strings.Split(te.Field, "."); {
	case path[0] == "Meta" && len(path) > 2 && path[1] == "ATTACK":
		owner = "Attack"
	case path[0] == "Meta" && len(path) > 1:
		owner = "MetaSection"
	}
	typ := te.Type.String()
	switch typ {
	case "rules.wireMeta":
		typ = "rules.MetaSection"
	case "engine.Attack":
		typ = "rules.Attack"
	}
	return fmt.Sprintf("json: cannot unmarshal %s into Go struct field %s.%s of type %s", te.Value, owner, te.Field, typ)
}

// CompileError reports a rule that is well-formed and makes no sense.
type CompileError struct {
	// Rule is the name of the rule.
	Rule string
	// Statement is the match or the condition that is wrong, empty when the
	// error is about the rule as a whole.
	Statement string
	// Line, from 1, and Offset, in bytes from 0, say where the rule starts in
	// its body. Line is 0 for a rule that was not read from a body.
	Line   int
	Offset int64
	// Detail is the cause, when it says more than Err does.
	Detail string
	// Err says what is wrong, in the words of a WHIDS manager where it has any.
	Err error
}

// Error returns the text that a WHIDS manager gives, followed by the name of
// the rule.
func (e *CompileError) Error() string {
	var b strings.Builder
	b.WriteString("Failed to compile rule ")
	if e.Line > 0 {
		fmt.Fprintf(&b, "(rule line=%d offset=%d) ", e.Line, e.Offset)
	}
	fmt.Fprintf(&b, "(error=%s) in rule %q", e.Err, e.Rule)
	if e.Detail != "" {
		b.WriteString(": " + e.Detail)
	}
	return b.String()
}

// Unwrap returns the error without the place.
func (e *CompileError) Unwrap() error { return e.Err }

// ExistsError reports a rule whose name is taken. It is ErrExists.
type ExistsError struct {
	// Rule is the name.
	Rule string
}

// Error returns the text that a WHIDS manager gives.
func (e *ExistsError) Error() string {
	return fmt.Sprintf("Rule %q already exists", e.Rule)
}

// Is makes every ExistsError an ErrExists.
func (e *ExistsError) Is(target error) bool { return target == ErrExists }

// excerpt shortens text quoted in an error.
func excerpt(s string) string {
	const most = 512
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
