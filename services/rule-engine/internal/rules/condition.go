package rules

import (
	"errors"
	"fmt"
	"strings"
)

// maxConditionTokens bounds the work that a condition makes: gene's tokenizer
// takes quadratic time and its parser is recursive.
const maxConditionTokens = 8192

type tokenKind uint8

const (
	tokenOperand tokenKind = iota
	tokenOperator
	tokenNot
	tokenOpen
	tokenClose
)

type token struct {
	kind tokenKind
	text string
}

// condition is a condition that follows the grammar
//
//	condition = term { operator term }
//	term      = "!" term | "(" condition ")" | operand { operand }
//	operator  = "and" | "AND" | "&&" | "or" | "OR" | "||"
//	operand   = "$" word
//
// The grammar only decides what is accepted. How operators bind is gene's
// business.
type condition struct {
	text     string
	adjacent [][2]string
}

// checkCondition checks the condition against the matches and normalises its
// blanks.
func (r *Rule) checkCondition(defined []string) error {
	fail := func(err error) error {
		return r.errorf(r.Condition, fmt.Errorf("Failed to parse condition \"%s\": %w", excerpt(r.Condition), err))
	}
	used := make(map[string]bool, len(defined))
	for _, name := range defined {
		used[name] = false
	}
	if len(r.Condition) > MaxConditionSize {
		return fail(fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrTooLarge, len(r.Condition), MaxConditionSize))
	}
	tokens, err := tokenize(r.Condition)
	if err != nil {
		return fail(err)
	}
	// An undefined operand is reported before anything else, as WHIDS does.
	for _, t := range tokens {
		if t.kind != tokenOperand {
			continue
		}
		if _, ok := used[t.text]; !ok {
			return r.errorf(r.Condition, fmt.Errorf("Unkown operand %s in condition \"%s\"", excerpt(t.text), excerpt(r.Condition)))
		}
		used[t.text] = true
	}
	c, err := parseCondition(r.Condition, tokens)
	if err != nil {
		return fail(err)
	}
	if len(tokens) == 0 && len(defined) > 0 {
		return fail(errors.New("the rule has matches and an empty condition"))
	}
	r.Condition = c.text
	for _, pair := range c.adjacent {
		r.Warnings = append(r.Warnings, fmt.Sprintf("no operator between %s and %s in the condition: %s is without effect", pair[0], pair[1], pair[0]))
	}
	for _, name := range defined {
		if !used[name] {
			r.Warnings = append(r.Warnings, fmt.Sprintf("match %s is not used in the condition", name))
		}
	}
	return nil
}

// tokenize splits a condition as gene does: at blanks, then leading "(" and "!"
// and trailing ")" of each word.
func tokenize(s string) ([]token, error) {
	var tokens []token
	for _, word := range strings.FieldsFunc(s, isBlank) {
		for word != "" && (word[0] == '(' || word[0] == '!') {
			kind := tokenNot
			if word[0] == '(' {
				kind = tokenOpen
			}
			tokens = append(tokens, token{kind: kind, text: word[:1]})
			word = word[1:]
		}
		core := strings.TrimRight(word, ")")
		switch {
		case core == "":
		case core[0] == '$' && len(core) > 1:
			tokens = append(tokens, token{kind: tokenOperand, text: core})
		case isOperator(core):
			tokens = append(tokens, token{kind: tokenOperator, text: core})
		default:
			return nil, fmt.Errorf("unexpected %q", excerpt(core))
		}
		for range len(word) - len(core) {
			tokens = append(tokens, token{kind: tokenClose, text: ")"})
		}
		if len(tokens) > maxConditionTokens {
			return nil, fmt.Errorf("%w: more than %d tokens", ErrTooLarge, maxConditionTokens)
		}
	}
	return tokens, nil
}

func isOperator(s string) bool {
	switch s {
	case "and", "AND", "&&", "or", "OR", "||":
		return true
	}
	return false
}

// parseCondition checks the order of tokens. Two states are enough: whether a
// term may start here or an operator must follow.
func parseCondition(text string, tokens []token) (condition, error) {
	c := condition{text: strings.Join(strings.FieldsFunc(text, isBlank), " ")}
	depth, wantTerm := 0, true
	for i, t := range tokens {
		switch t.kind {
		case tokenOperand:
			if !wantTerm {
				prev := tokens[i-1]
				if prev.kind != tokenOperand {
					return c, fmt.Errorf("no operator before %s", t.text)
				}
				c.adjacent = append(c.adjacent, [2]string{prev.text, t.text})
			}
			wantTerm = false
		case tokenOperator:
			if wantTerm {
				return c, fmt.Errorf("no operand before %q", t.text)
			}
			wantTerm = true
		case tokenNot, tokenOpen:
			if !wantTerm {
				return c, fmt.Errorf("no operator before %q", t.text)
			}
			if t.kind == tokenOpen {
				depth++
			}
		case tokenClose:
			if wantTerm {
				return c, errors.New("no operand before \")\"")
			}
			if depth--; depth < 0 {
				return c, errors.New("unbalanced \")\"")
			}
		}
	}
	switch {
	case depth > 0:
		return c, errors.New("unbalanced \"(\"")
	case wantTerm && len(tokens) > 0:
		return c, fmt.Errorf("no operand after %q", tokens[len(tokens)-1].text)
	}
	return c, nil
}

func isBlank(r rune) bool {
	return strings.ContainsRune(" \t\r\n\v\f", r)
}
