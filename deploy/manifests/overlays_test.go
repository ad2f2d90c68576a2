package manifests

import (
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/chartutil"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
)

// generated are the names that kustomize gives a hash of the content.
var generated = regexp.MustCompile(`(nightjar-(?:config-[a-z-]+|nats-config))-[a-z0-9]{10}\b`)

// plain returns an object as a map without what only one of kustomize and Helm
// adds: the hash in a name or annotation, the namespace, comments in files.
func plain(t *testing.T, o runtime.Object) map[string]any {
	t.Helper()
	if c, ok := o.(*corev1.ConfigMap); ok {
		for name, text := range c.Data {
			if !strings.HasSuffix(name, ".yaml") {
				continue
			}
			flags := map[string]any{}
			if err := yaml.UnmarshalStrict([]byte(text), &flags); err != nil {
				t.Fatal(err)
			}
			for flag, value := range flags {
				if n, ok := value.(float64); ok {
					flags[flag], _ = strings.CutSuffix(string(must(json.Marshal(n))), ".0")
				}
			}
			c.Data[name] = string(must(json.Marshal(flags)))
		}
	}
	text := generated.ReplaceAllString(string(must(json.Marshal(o))), "$1")
	m := map[string]any{}
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		t.Fatal(err)
	}
	meta := m["metadata"].(map[string]any)
	delete(meta, "namespace")
	if spec, ok := m["spec"].(map[string]any); ok {
		if template, ok := spec["template"].(map[string]any); ok {
			delete(template["metadata"].(map[string]any), "annotations")
			sortNamed(template)
		}
		if ports, ok := spec["ports"].([]any); ok {
			sortList(ports)
		}
		for _, claim := range list(spec["volumeClaimTemplates"]) {
			delete(claim.(map[string]any)["metadata"].(map[string]any), "labels")
		}
	}
	return m
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func list(v any) []any { l, _ := v.([]any); return l }

// sortNamed sorts the lists of a pod whose order means nothing.
func sortNamed(template map[string]any) {
	spec := template["spec"].(map[string]any)
	sortList(list(spec["volumes"]))
	for _, c := range list(spec["containers"]) {
		for _, member := range []string{"env", "ports", "volumeMounts"} {
			sortList(list(c.(map[string]any)[member]))
		}
	}
}

func sortList(l []any) {
	slices.SortFunc(l, func(a, b any) int {
		return strings.Compare(string(must(json.Marshal(a))), string(must(json.Marshal(b))))
	})
}

// The chart is the overlays in another form: the same objects with the same
// content, but for the namespace, which Helm does not make.
func TestChartIsTheOverlays(t *testing.T) {
	all := render(t)
	for _, name := range []string{"dev", "production", "forwarder"} {
		want, got := map[string]string{}, map[string]string{}
		for _, o := range all[name] {
			key := generated.ReplaceAllString(id(o), "$1")
			if key == "ConfigMap/nightjar-config-"+forwarder && name != "forwarder" {
				continue // kustomize makes it for all
			}
			if _, ok := o.(*corev1.Namespace); !ok {
				want[key] = string(must(yaml.Marshal(plain(t, o))))
			}
		}
		for _, o := range all["helm-"+name] {
			got[id(o)] = string(must(yaml.Marshal(plain(t, o))))
		}
		for _, key := range slices.Sorted(maps.Keys(want)) {
			if got[key] != want[key] {
				t.Errorf("%s: %s of the chart\n%s", name, key, difference(got[key], want[key]))
			}
			delete(got, key)
		}
		for key := range got {
			t.Errorf("%s: the chart has %s, and the overlay not", name, key)
		}
	}
}

// difference returns the lines that only one of two texts has.
func difference(got, want string) string {
	if got == "" {
		return "is not there"
	}
	var b strings.Builder
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for _, line := range g {
		if !slices.Contains(w, line) {
			b.WriteString("has   " + line + "\n")
		}
	}
	for _, line := range w {
		if !slices.Contains(g, line) {
			b.WriteString("wants " + line + "\n")
		}
	}
	if b.Len() == 0 {
		return got + "in another order than\n" + want
	}
	return b.String()
}

// Without the canary the chart has nothing of it, and everything else.
func TestChartWithoutCanary(t *testing.T) {
	c, values := loadChart(t, "")
	values["canary"] = map[string]any{"enabled": false}
	var left []string
	for _, o := range decode(t, renderChart(t, c, values)) {
		if left = append(left, id(o)); strings.Contains(id(o), access.Canary) {
			t.Errorf("the chart has %s", id(o))
		}
	}
	for _, o := range render(t)["helm-dev"] {
		if key := id(o); !strings.Contains(key, access.Canary) && !slices.Contains(left, key) {
			t.Errorf("%s has gone with the canary", key)
		}
	}
}

// With an address for traces every service is told of it, and takes it.
func TestChartWithTraces(t *testing.T) {
	c, values := loadChart(t, "")
	values["traces"] = map[string]any{"endpoint": "http://collector.observability:4318", "ratio": "0.1"}
	list := decode(t, renderChart(t, c, values))
	for _, s := range find[*appsv1.StatefulSet](list) {
		vars := env(s.Spec.Template.Spec.Containers[0])
		if traced := s.Name != natsPod; traced != (vars["NIGHTJAR_TRACE_ENDPOINT"] != "") || traced != (vars["NIGHTJAR_TRACE_RATIO"] == "0.1") {
			t.Errorf("%s is told %v", s.Name, vars)
		} else if traced {
			understood(t, s.Name, configOf(t, list, s.Name), vars)
		}
	}
}

// The schema of the chart's values knows what there is and refuses the rest.
func TestChartValues(t *testing.T) {
	for text, refused := range map[string]bool{
		"replication: 3":                                          false,
		"services: {log-ingest: {replicas: 6}}":                   false,
		"services: {api-gateway: {autoscale: null, replicas: 3}}": false,
		"services: {api-gateway: {config: {max-inflated: 1GiB}}}": false,
		"traces: {ratio: \"0.25\"}":                               false,
		"traces: {ratio: \"2\"}":                                  true,
		"traces: {endpoint: collector}":                           true,
		"canary: {enabled: false}":                                false,
		"canary: {enable: false}":                                 true,
		"replicas: 3":                                             true,
		"replication: 2":                                          true,
		"services: {log-ingest: {replica: 6}}":                    true,
		"services: {log-ingest: {replicas: 0}}":                   true,
		"services: {logingest: {replicas: 2}}":                    true,
		"services: {api-gateway: {env: {MAX_EVENTS: 1GiB}}}":      true,
		"services: {api-gateway: {memoryLimit: 1G}}":              true,
		"services: {api-gateway: {autoscale: null}}":              true,
		"nats: {replicas: 2}":                                     true,
		"nats: {maxStore: 80}":                                    true,
		"image: {pullPolicy: Sometimes}":                          true,
	} {
		c, _ := loadChart(t, "")
		values := map[string]any{}
		if err := yaml.UnmarshalStrict([]byte(text), &values); err != nil {
			t.Fatal(err)
		}
		_, err := chartutil.ToRenderValues(c, values, chartutil.ReleaseOptions{Name: "edr", Namespace: "nightjar"}, chartutil.DefaultCapabilities)
		if (err != nil) != refused {
			t.Errorf("%s: %v", text, err)
		}
	}
}
