package rules

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/0xrawsec/gene/v2/engine"
	genelog "github.com/0xrawsec/golang-utils/log"
)

// geneMu serialises what gene parses: it keeps state in package variables.
var geneMu sync.Mutex

// quiet keeps gene from writing its remarks to the standard logger. Only gene's
// own logging library is touched. What gene would say is in Rule.Warnings.
var quiet = sync.OnceFunc(func() { genelog.SetLogLevel(genelog.LCritical) })

// withGene runs f while nobody else parses with gene.
func withGene(f func()) {
	geneMu.Lock()
	defer geneMu.Unlock()
	quiet()
	f()
}

// check parses all statements and the condition.
func (r *Rule) check() error {
	defined := make(map[string]string, len(r.Matches))
	order := make([]string, 0, len(r.Matches))
	for _, m := range r.Matches {
		name, err := r.checkMatch(m)
		if err != nil {
			return err
		}
		if _, dup := defined[name]; dup {
			return r.errorf(m, fmt.Errorf("Match %s is defined twice: %s", name, excerpt(m)))
		}
		defined[name] = m
		order = append(order, name)
	}
	return r.checkCondition(order)
}

// checkMatch parses one match in the order in which gene tries its kinds.
func (r *Rule) checkMatch(m string) (name string, err error) {
	withGene(func() {
		switch {
		case engine.IsFieldMatch(m):
			name, err = r.checkField(m)
		case engine.IsContainerMatch(m):
			name, err = r.checkContainer(m)
		default:
			err = r.errorf(m, fmt.Errorf("Unknown match statement: %s", excerpt(m)))
		}
	})
	return name, err
}

func (r *Rule) checkField(m string) (string, error) {
	f, err := engine.ParseFieldMatch(m)
	if f.Operator == "~=" && len(f.Value) > MaxRegexpSize {
		return "", r.regexpTooLarge(m, len(f.Value))
	}
	if err != nil {
		ce := r.errorf(m, shortened(err, m))
		if f.Operator == "~=" {
			if _, rerr := regexp.Compile("(" + f.Value + ")"); rerr != nil {
				ce.Detail = excerpt(rerr.Error())
			}
		}
		return "", ce
	}
	return f.Name, nil
}

func (r *Rule) checkContainer(m string) (string, error) {
	c, err := engine.ParseContainerMatch(m)
	if err != nil {
		return "", r.errorf(m, shortened(err, m))
	}
	if len(c.Regexp) > MaxRegexpSize {
		return "", r.regexpTooLarge(m, len(c.Regexp))
	}
	// Gene compiles the expression at the first event, and panics there.
	re, err := regexp.Compile(c.Regexp)
	if err != nil {
		ce := r.errorf(m, fmt.Errorf("Failed to compile \"%s\"", excerpt(m)))
		ce.Detail = excerpt(err.Error())
		return "", ce
	}
	if !slices.Contains(re.SubexpNames()[1:], c.RexName) {
		ce := r.errorf(m, fmt.Errorf("Failed to compile \"%s\"", excerpt(m)))
		ce.Detail = fmt.Sprintf("the expression has no group named %q", c.RexName)
		return "", ce
	}
	return c.Name, nil
}

func (r *Rule) regexpTooLarge(m string, size int) error {
	return r.errorf(m, fmt.Errorf("%w: the regular expression has %d bytes, at most %d are allowed: %s", ErrTooLarge, size, MaxRegexpSize, excerpt(m)))
}

// shortened replaces a long statement in gene's text by its beginning.
func shortened(err error, statement string) error {
	if short := excerpt(statement); short != statement {
		return fmt.Errorf("%s", strings.ReplaceAll(err.Error(), statement, short))
	}
	return err
}

// Compile gives the rule to gene. Containers that the rule names exist in the
// result, empty, so that gene does not disable the rule; the caller looks up
// extracted values itself. Event ids without a channel are not part of the
// result: see Selection. A disabled rule can be compiled too. The error is a
// *CompileError.
func (r *Rule) Compile() (*engine.CompiledRule, error) {
	text, _ := r.TextAs(FormV2)
	var (
		compiled *engine.CompiledRule
		err      error
	)
	withGene(func() {
		defer func() {
			if p := recover(); p != nil {
				compiled, err = nil, fmt.Errorf("gene: %v", p)
			}
		}()
		db := engine.NewContainers()
		for _, m := range r.Matches {
			if engine.IsFieldMatch(m) || !engine.IsContainerMatch(m) {
				continue
			}
			c, perr := engine.ParseContainerMatch(m)
			if perr == nil && !db.Has(c.Container) {
				err = db.AddNewContainer(c.Container)
			}
		}
		if err == nil {
			compiled, err = engine.Load([]byte(text), db)
		}
	})
	if err != nil {
		return nil, r.errorf("", err)
	}
	return compiled, nil
}
