package monitoring

import (
	"context"
	"fmt"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/template"
)

// ruleGroup is a group of rules.
type ruleGroup = rulefmt.RuleGroup

// ruleTests is a file of rule tests in the format of promtool, as far as it is
// used here.
type ruleTests struct {
	RuleFiles          []string       `yaml:"rule_files"`
	EvaluationInterval model.Duration `yaml:"evaluation_interval"`
	GroupEvalOrder     []string       `yaml:"group_eval_order"`
	Tests              []ruleTest     `yaml:"tests"`
}

type ruleTest struct {
	Name        string         `yaml:"name"`
	Interval    model.Duration `yaml:"interval"`
	InputSeries []struct {
		Series string `yaml:"series"`
		Values string `yaml:"values"`
	} `yaml:"input_series"`
	AlertRuleTests []alertCase `yaml:"alert_rule_test"`
}

type alertCase struct {
	EvalTime  model.Duration  `yaml:"eval_time"`
	Alertname string          `yaml:"alertname"`
	ExpAlerts []expectedAlert `yaml:"exp_alerts"`
}

type expectedAlert struct {
	Labels      map[string]string `yaml:"exp_labels"`
	Annotations map[string]string `yaml:"exp_annotations"`
}

// String returns all of an alert in one line.
func (a expectedAlert) String() string {
	var b strings.Builder
	for _, m := range []map[string]string{a.Labels, a.Annotations} {
		for _, name := range slices.Sorted(maps.Keys(m)) {
			fmt.Fprintf(&b, "%s=%q ", name, m[name])
		}
	}
	return b.String()
}

// bench evaluates rules over series, as Prometheus does.
type bench struct {
	t      *testing.T
	engine *promql.Engine
	store  *memory
	groups []ruleGroup
	// recorded are the series that each recording rule made last, active when
	// each alert became so, by rule and labels.
	recorded map[string]map[string]labels.Labels
	active   map[string]map[string]time.Time
}

func newBench(t *testing.T, groups []ruleGroup, step time.Duration) *bench {
	return &bench{t: t, groups: groups, store: newMemory(), recorded: map[string]map[string]labels.Labels{}, active: map[string]map[string]time.Time{},
		engine: promql.NewEngine(promql.EngineOpts{MaxSamples: 1e6, Timeout: time.Minute, EnableAtModifier: true, EnableNegativeOffset: true,
			NoStepSubqueryIntervalFn: func(int64) int64 { return step.Milliseconds() }})}
}

func (b *bench) query(ctx context.Context, expr string, at time.Time) (promql.Vector, error) {
	q, err := b.engine.NewInstantQuery(ctx, b.store, nil, expr, at)
	if err != nil {
		return nil, err
	}
	defer q.Close()
	switch v := q.Exec(ctx); {
	case v.Err != nil:
		return nil, v.Err
	default:
		return v.Vector()
	}
}

// step evaluates all rules once and returns the alerts that fire, by name.
func (b *bench) step(at time.Time) map[string][]expectedAlert {
	b.t.Helper()
	firing := map[string][]expectedAlert{}
	for _, g := range b.groups {
		for i, r := range g.Rules {
			v, err := b.query(b.t.Context(), r.Expr, at)
			if err != nil {
				b.t.Fatalf("%s%s at %s: %v", r.Record, r.Alert, at, err)
			}
			if key := fmt.Sprintf("%s/%d", g.Name, i); r.Record != "" {
				b.record(key, &r, v, at)
			} else {
				firing[r.Alert] = append(firing[r.Alert], b.alert(key, &r, v, at)...)
			}
		}
	}
	return firing
}

// record stores what a rule gives and ends the series that it gives no more.
func (b *bench) record(key string, r *rulefmt.Rule, v promql.Vector, at time.Time) {
	now := map[string]labels.Labels{}
	for _, s := range v {
		l := labels.NewBuilder(s.Metric).Set(labels.MetricName, r.Record)
		for name, value := range r.Labels {
			l.Set(name, value)
		}
		now[l.Labels().String()] = l.Labels()
		b.store.add(l.Labels(), at.UnixMilli(), s.F)
	}
	for text, l := range b.recorded[key] {
		if _, ok := now[text]; !ok {
			b.store.add(l, at.UnixMilli(), math.Float64frombits(value.StaleNaN))
		}
	}
	b.recorded[key] = now
}

// alert returns the alerts of a rule that have been active for long enough.
func (b *bench) alert(key string, r *rulefmt.Rule, v promql.Vector, at time.Time) (firing []expectedAlert) {
	b.t.Helper()
	since := map[string]time.Time{}
	for _, s := range v {
		data := template.AlertTemplateData(s.Metric.Map(), nil, "", s)
		expand := func(text string) string {
			out, err := template.NewTemplateExpander(b.t.Context(), "{{$labels := .Labels}}{{$value := .Value}}"+text, r.Alert, data, model.TimeFromUnix(at.Unix()), b.query, nil, nil).Expand()
			if err != nil {
				b.t.Fatalf("%s: %v", r.Alert, err)
			}
			return out
		}
		a := expectedAlert{Labels: map[string]string{}, Annotations: map[string]string{}}
		for name, value := range labels.NewBuilder(s.Metric).Del(labels.MetricName).Labels().Map() {
			a.Labels[name] = value
		}
		for name, text := range r.Labels {
			a.Labels[name] = expand(text)
		}
		for name, text := range r.Annotations {
			a.Annotations[name] = expand(text)
		}
		id := fmt.Sprint(a.Labels)
		if _, twice := since[id]; twice {
			b.t.Fatalf("%s: two alerts with the labels %s", r.Alert, id)
		}
		if since[id] = at; !b.active[key][id].IsZero() {
			since[id] = b.active[key][id]
		}
		if at.Sub(since[id]) >= time.Duration(r.For) {
			firing = append(firing, a)
		}
	}
	b.active[key] = since
	return firing
}

// load puts the series of a test into the storage.
func (b *bench) load(test *ruleTest) {
	b.t.Helper()
	for _, in := range test.InputSeries {
		l, values, err := parser.ParseSeriesDesc(in.Series + " " + in.Values)
		if err != nil {
			b.t.Fatalf("%s: %v", in.Series, err)
		}
		for i, v := range values {
			if !v.Omitted {
				b.store.add(l, int64(i)*time.Duration(test.Interval).Milliseconds(), v.Value)
			}
		}
	}
}

// ruleGroups reads the rules in the order of their files.
func ruleGroups(t *testing.T, patterns ...string) (groups []ruleGroup) {
	t.Helper()
	for _, pattern := range patterns {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: no rules, %v", pattern, err)
		}
		for _, file := range files {
			g, errs := rulefmt.ParseFile(file, false)
			if len(errs) > 0 {
				t.Fatal(errs)
			}
			groups = append(groups, g.Groups...)
		}
	}
	return groups
}

// run evaluates the rules of a test at every interval and compares the alerts
// that fire with those that it expects.
func (test *ruleTest) run(t *testing.T, groups []ruleGroup, every time.Duration) {
	groups = slices.Clone(groups)
	asked := map[string]bool{"": true} // recording rules have no name of an alert
	for _, c := range test.AlertRuleTests {
		asked[c.Alertname] = true
	}
	for i, g := range groups {
		groups[i].Rules = slices.DeleteFunc(slices.Clone(g.Rules), func(r rulefmt.Rule) bool { return !asked[r.Alert] })
	}
	b := newBench(t, groups, every)
	b.load(test)
	var last time.Duration
	for _, c := range test.AlertRuleTests {
		last = max(last, time.Duration(c.EvalTime))
	}
	for at := time.Duration(0); at <= last; at += every {
		firing := b.step(time.Unix(0, 0).UTC().Add(at))
		for _, c := range test.AlertRuleTests {
			if e := time.Duration(c.EvalTime); e < at || e >= at+every {
				continue
			}
			text := func(list []expectedAlert) string {
				var lines []string
				for _, a := range list {
					lines = append(lines, a.String())
				}
				slices.Sort(lines)
				return strings.Join(lines, "\n")
			}
			if got, want := text(firing[c.Alertname]), text(c.ExpAlerts); got != want {
				t.Errorf("%s at %s fires\n%s\nwant\n%s", c.Alertname, at, got, want)
			}
		}
	}
}
