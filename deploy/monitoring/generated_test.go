package monitoring

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"gopkg.in/yaml.v3"
)

// current demands that a file holds what is generated, or writes it.
func current(t *testing.T, file string, want []byte) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what is generated; GOWORK=off go test -update . writes it anew", file)
	}
}

var dashboardDir = filepath.Join("grafana", "dashboards")

// The dashboards are those of Dashboards, and no others are there.
func TestDashboardFiles(t *testing.T) {
	var want []string
	for _, d := range Dashboards() {
		text, err := d.JSON()
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, d.UID+".json")
		current(t, filepath.Join(dashboardDir, d.UID+".json"), text)
	}
	entries, err := os.ReadDir(dashboardDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains(want, e.Name()) {
			t.Errorf("%s is no dashboard of ours", e.Name())
		}
	}
}

// model is what Grafana's JSON model of a dashboard must have.
type dashboardModel struct {
	UID        string `json:"uid"`
	Title      string `json:"title"`
	Templating struct {
		List []struct{ Name, Type string } `json:"list"`
	} `json:"templating"`
	Panels []struct {
		ID                       int `json:"id"`
		Type, Title, Description string
		GridPos                  struct{ X, Y, W, H int }
		Datasource               struct{ UID string }
		FieldConfig              struct {
			Defaults struct{ Unit string }
		}
		Targets []struct {
			Expr, LegendFormat string
			Datasource         struct{ UID string }
		}
	} `json:"panels"`
}

// variables are what Grafana replaces before it asks Prometheus.
var variables = strings.NewReplacer("$__rate_interval", "5m")

var legendLabel = regexp.MustCompile(`{{(\w+)}}`)

// What stands in the files can be shown: identities are unique, every panel has
// a unit, a description, its own place and the chosen data source, and asks for
// what is exported.
func TestDashboards(t *testing.T) {
	k := newKnown(t)
	files, err := filepath.Glob(filepath.Join(dashboardDir, "*.json"))
	if err != nil || len(files) != len(Dashboards()) {
		t.Fatalf("%d dashboards, %v", len(files), err)
	}
	uids := map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var d dashboardModel
		if err := json.Unmarshal(text, &d); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if d.UID == "" || len(d.UID) > 40 || uids[d.UID] || d.Title == "" {
			t.Errorf("%s: uid %q, title %q", file, d.UID, d.Title)
		}
		uids[d.UID] = true
		if v := d.Templating.List; len(v) == 0 || v[0].Name != "datasource" || v[0].Type != "datasource" {
			t.Errorf("%s: variables %v", file, v)
		}
		taken := map[string]string{}
		for _, p := range d.Panels {
			what := fmt.Sprintf("%s: panel %q", filepath.Base(file), p.Title)
			for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
				for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
					if at := fmt.Sprint(x, y); taken[at] != "" || x >= gridWidth {
						t.Fatalf("%s and %s are at %s", what, taken[at], at)
					} else {
						taken[at] = what
					}
				}
			}
			if p.Type == "row" {
				continue
			}
			if p.Title == "" || p.Description == "" || p.FieldConfig.Defaults.Unit == "" || p.Datasource.UID != "${datasource}" || len(p.Targets) == 0 {
				t.Errorf("%s: description %q, unit %q, data source %q, %d queries", what, p.Description, p.FieldConfig.Defaults.Unit, p.Datasource.UID, len(p.Targets))
			}
			for _, q := range p.Targets {
				if q.Datasource.UID != "${datasource}" || q.LegendFormat == "" {
					t.Errorf("%s: data source %q, legend %q", what, q.Datasource.UID, q.LegendFormat)
				}
				if strings.HasPrefix(q.Expr, "sum by (severity) (ALERTS{") { // a metric of Prometheus itself
					continue
				}
				e := parse(t, variables.Replace(q.Expr))
				for _, problem := range k.check(e) {
					t.Errorf("%s: %s", what, problem)
				}
				for _, l := range legendLabel.FindAllStringSubmatch(q.LegendFormat, -1) {
					if !slices.Contains(k.available(e), l[1]) {
						t.Errorf("%s: nothing in %s has the label %s", what, q.Expr, l[1])
					}
				}
			}
		}
	}
}

// Every metric of Nightjar's own is listed with its labels, and nothing else.
func TestMetricsAreDocumented(t *testing.T) {
	x := families(t)
	var b strings.Builder
	b.WriteString(`# Metrics

Written by ` + "`GOWORK=off go test -update .`" + ` in ` + "`deploy/monitoring`" + ` from what the programs export, and held to them by
` + "`make test-monitoring`" + `. Names and labels do not change without a note in CHANGELOG.md. Every program also exports ` + "`go_*`" + `
and ` + "`process_*`" + ` of the Prometheus client. Counters with known labels begin at 0; those of requests appear with the first
request of their kind.

Prometheus asks ` + "`/metrics`" + ` of the ops address: port 8002 of a standalone, 8080 of a service. The rules expect the label
` + "`job`" + ` to be the name of the service, or ` + "`standalone`" + `:

    scrape_configs:
      - job_name: standalone
        static_configs: [{targets: ["127.0.0.1:8002"]}]

| metric | type | labels | |
|---|---|---|---|
`)
	var list []string
	for name := range x {
		if strings.HasPrefix(name, "nightjar_") {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	for _, name := range list {
		f := x[name]
		var labels []string
		for l := range x.labels(name) {
			labels = append(labels, "`"+l+"`")
		}
		slices.Sort(labels)
		if f.GetHelp() == "" {
			t.Errorf("%s has no help", name)
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", name, strings.ToLower(dto.MetricType_name[int32(f.GetType())]), strings.Join(labels, ", "), f.GetHelp())
	}
	current(t, filepath.Join(root, "docs", "operations", "metrics.md"), []byte(b.String()))
}

// No metric has a series for each endpoint: their number has a bound.
func TestCardinality(t *testing.T) {
	x := families(t)
	for name := range x {
		for l, values := range x.labels(name) {
			if slices.ContainsFunc(values, func(v string) bool { return uuid.MatchString(v) }) {
				t.Errorf("%s has the label %s for each endpoint", name, l)
			}
		}
		if n := len(x[name].GetMetric()); n > 100 && strings.HasPrefix(name, "nightjar_") {
			t.Errorf("%s has %d series", name, n)
		}
	}
}

var uuid = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-`)

// The Helm chart and the overlays bring the rules that Prometheus reads here.
func TestRulesReachKubernetes(t *testing.T) {
	var all struct {
		Groups []yaml.Node `yaml:"groups"`
	}
	files, err := filepath.Glob(rulesPattern)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var one struct {
			Groups []yaml.Node `yaml:"groups"`
		}
		if err := yaml.Unmarshal(text, &one); err != nil {
			t.Fatal(err)
		}
		all.Groups = append(all.Groups, one.Groups...)
	}
	encode := func(v any) []byte {
		var b bytes.Buffer
		e := yaml.NewEncoder(&b)
		e.SetIndent(2)
		if err := e.Encode(v); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	const head = "# Written from deploy/monitoring/prometheus/rules by GOWORK=off go test -update . there.\n"
	groups := encode(all)
	current(t, filepath.Join(root, "deploy", "helm", "nightjar", "files", "rules.yaml"), append([]byte(head), groups...))
	rule := head + "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: nightjar\n  labels: {app.kubernetes.io/part-of: nightjar}\nspec:\n" + indent(groups)
	current(t, filepath.Join(root, "k8s", "components", "monitoring", "prometheusrule.yaml"), []byte(rule))
}

// indent moves lines two columns to the right.
func indent(text []byte) string {
	var b strings.Builder
	for line := range strings.Lines(string(text)) {
		if line != "\n" {
			b.WriteString("  ")
		}
		b.WriteString(line)
	}
	return b.String()
}
