package monitoring

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

// known is what expressions may ask for: what the programs export, and what
// rules record of it.
type known struct {
	exported exported
	// recorded are the labels of recorded metrics.
	recorded map[string][]string
}

// ownLabels are those that Prometheus adds to whatever it scrapes.
var ownLabels = []string{"job", "instance"}

func newKnown(t *testing.T) *known {
	k := &known{exported: families(t), recorded: map[string][]string{}}
	for _, g := range ruleGroups(t, rulesPattern) {
		for _, r := range g.Rules {
			if r.Record == "" {
				continue
			}
			have := slices.Collect(maps.Keys(r.Labels))
			parser.Inspect(parse(t, r.Expr), func(n parser.Node, _ []parser.Node) error {
				if a, ok := n.(*parser.AggregateExpr); ok {
					have = append(have, a.Grouping...)
				}
				return nil
			})
			k.recorded[r.Record] = append(k.recorded[r.Record], have...)
		}
	}
	return k
}

func parse(t *testing.T, expr string) parser.Expr {
	t.Helper()
	e, err := parser.ParseExpr(expr)
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	return e
}

// check returns what an expression asks for and nobody exports.
func (k *known) check(expr parser.Expr) (problems []string) {
	parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
		switch n := n.(type) {
		case *parser.VectorSelector:
			problems = append(problems, k.selector(n)...)
		case *parser.AggregateExpr:
			have := k.available(n.Expr)
			for _, l := range n.Grouping {
				if !slices.Contains(have, l) {
					problems = append(problems, fmt.Sprintf("nothing in %s has the label %s", n.Expr, l))
				}
			}
		}
		return nil
	})
	return problems
}

// names returns the metrics that a selector asks for. A regular expression
// must be a list of names.
func names(s *parser.VectorSelector) []string {
	for _, m := range s.LabelMatchers {
		if m.Name == labels.MetricName {
			return values(m)
		}
	}
	return nil
}

// values returns the values that a matcher lists.
func values(m *labels.Matcher) []string {
	if m.Type == labels.MatchEqual {
		return []string{m.Value}
	}
	return m.SetMatches()
}

func (k *known) selector(s *parser.VectorSelector) (problems []string) {
	list := names(s)
	if len(list) == 0 {
		return []string{fmt.Sprintf("%s names no metrics", s)}
	}
	for _, name := range list {
		have, ok := k.labels(name)
		if !ok {
			problems = append(problems, fmt.Sprintf("nothing exports %s", name))
			continue
		}
		for _, m := range s.LabelMatchers {
			if m.Name == labels.MetricName || slices.Contains(ownLabels, m.Name) || strings.HasPrefix(m.Value, "$") {
				continue
			}
			known, ok := have[m.Name]
			if !ok {
				problems = append(problems, fmt.Sprintf("%s has no label %s", name, m.Name))
			}
			for _, v := range values(m) {
				if known != nil && !slices.Contains(known, v) {
					problems = append(problems, fmt.Sprintf("%s has no %s=%q, only %q", name, m.Name, v, known))
				}
			}
		}
	}
	return problems
}

// labels returns the labels of a metric, with the values that are known.
func (k *known) labels(name string) (map[string][]string, bool) {
	if have, ok := k.recorded[name]; ok {
		found := map[string][]string{}
		for _, l := range have {
			found[l] = nil
		}
		return found, true
	}
	if name == "up" {
		return nil, true
	}
	if k.exported[name] != nil {
		return k.exported.labels(name), true
	}
	for _, part := range []string{"_bucket", "_sum", "_count"} {
		if base, ok := strings.CutSuffix(name, part); ok && k.exported[base] != nil {
			found := k.exported.labels(base)
			if part == "_bucket" {
				found["le"] = nil
			}
			return found, true
		}
	}
	return nil, false
}

// available returns the labels that the result of an expression can have.
func (k *known) available(expr parser.Expr) []string {
	have := slices.Clone(ownLabels)
	parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
		switch n := n.(type) {
		case *parser.VectorSelector:
			for _, name := range names(n) {
				found, _ := k.labels(name)
				have = slices.AppendSeq(have, maps.Keys(found))
			}
		case *parser.Call:
			if n.Func.Name == "label_replace" {
				if dst, ok := n.Args[1].(*parser.StringLiteral); ok {
					have = append(have, dst.Val)
				}
			}
		}
		return nil
	})
	return have
}

// Whatever a rule asks for is exported, with the labels and values it asks by.
func TestRulesAskForWhatIsExported(t *testing.T) {
	k := newKnown(t)
	for _, g := range ruleGroups(t, rulesPattern) {
		for _, r := range g.Rules {
			for _, problem := range k.check(parse(t, r.Expr)) {
				t.Errorf("%s%s: %s", r.Record, r.Alert, problem)
			}
			have := append(k.available(parse(t, r.Expr)), slices.Collect(maps.Keys(r.Labels))...)
			for _, text := range r.Annotations {
				for _, part := range strings.Split(text, "$labels.")[1:] {
					if l := strings.FieldsFunc(part, func(c rune) bool { return c != '_' && (c < 'a' || c > 'z') })[0]; !slices.Contains(have, l) {
						t.Errorf("%s: its summary has the label %s, the alert none", r.Alert, l)
					}
				}
			}
		}
	}
}

// What is not exported is found, of every kind; without this the test before
// could pass for want of a look.
func TestUnknownNamesAreFound(t *testing.T) {
	k := newKnown(t)
	for expr, want := range map[string]string{
		`sum(rate(nightjar_api_gateway_events_total[5m]))`:                                    "nothing exports nightjar_api_gateway_events_total",
		`{__name__=~"nightjar_(api_gateway|rule_motor)_view_gap"}`:                            "nothing exports nightjar_rule_motor_view_gap",
		`{__name__=~"nightjar_.+_view_gap"}`:                                                  "names no metrics",
		`nightjar_api_gateway_ingest_refused_total{cause="full"}`:                             "has no label cause",
		`nightjar_api_gateway_ingest_refused_total{reason=~"full|fuller"}`:                    `has no reason="fuller"`,
		`sum by (colour) (nightjar_dead_letters_total)`:                                       "has the label colour",
		`nightjar:view_gap:min`:                                                               "nothing exports nightjar:view_gap:min",
		`max by (stream) (nightjar:view_gap:max)`:                                             "has the label stream",
		`histogram_quantile(0.9, rate(nightjar_rule_engine_batch_length_seconds_bucket[5m]))`: "nothing exports",
	} {
		if got := strings.Join(k.check(parse(t, expr)), "; "); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", expr, got, want)
		}
	}
	if got := k.check(parse(t, `sum by (le, reason, job) (rate(nightjar_rule_engine_batch_duration_seconds_bucket[5m])) / on () nightjar_dead_letters_total`)); len(got) != 1 {
		t.Errorf("%q", got)
	}
}
