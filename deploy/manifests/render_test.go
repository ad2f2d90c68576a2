package manifests

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
)

const (
	root     = "../.."
	chartDir = root + "/deploy/helm/nightjar"
)

// render returns the objects of each way to install Nightjar in Kubernetes:
// the overlays, and the dev overlay with the forwarder, by name, and the chart
// under the same names behind helm-.
func render(t *testing.T) map[string][]runtime.Object {
	t.Helper()
	all := map[string][]runtime.Object{}
	for name, files := range map[string]struct{ overlay, values string }{
		"dev":        {"k8s/overlays/dev", ""},
		"production": {"k8s/overlays/production", "values-production.yaml"},
		"forwarder":  {"deploy/manifests/testdata/siem-forwarder", "values-siem-forwarder.yaml"},
	} {
		all[name] = decode(t, overlay(t, files.overlay))
		all["helm-"+name] = decode(t, helm(t, files.values))
	}
	return all
}

// services are the names of the StatefulSets that a rendering has beside NATS.
func services(rendering string) []string {
	list := append(slices.Clone(access.Services), access.Canary)
	if strings.HasSuffix(rendering, "forwarder") {
		list = append(list, forwarder)
	}
	return list
}

// forwarder is a program that hands the alerts of one SIEM over.
const forwarder = "siem-forwarder"

func overlay(t *testing.T, dir string) string {
	t.Helper()
	m, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join(root, dir))
	if err != nil {
		t.Fatal(err)
	}
	text, err := m.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// loadChart returns the chart and the values of a file of its, "" for none
// beside those of values.yaml.
func loadChart(t *testing.T, valuesFile string) (*chart.Chart, map[string]any) {
	t.Helper()
	c, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]any{}
	if valuesFile != "" {
		text, err := os.ReadFile(filepath.Join(chartDir, valuesFile))
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.UnmarshalStrict(text, &values); err != nil {
			t.Fatal(err)
		}
	}
	return c, values
}

func helm(t *testing.T, valuesFile string) string {
	t.Helper()
	c, values := loadChart(t, valuesFile)
	return renderChart(t, c, values)
}

func renderChart(t *testing.T, c *chart.Chart, values map[string]any) string {
	t.Helper()
	all, err := chartutil.ToRenderValues(c, values, chartutil.ReleaseOptions{Name: "edr", Namespace: "nightjar", IsInstall: true}, chartutil.DefaultCapabilities)
	if err != nil {
		t.Fatal(err)
	}
	files, err := engine.Render(c, all)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, text := range files {
		b.WriteString("---\n" + text + "\n")
	}
	return b.String()
}

// object is what every Kubernetes object is.
type object interface {
	runtime.Object
	metav1.Object
}

func id(o runtime.Object) string {
	return o.GetObjectKind().GroupVersionKind().Kind + "/" + o.(object).GetName()
}

var documents = regexp.MustCompile(`(?m)^---$`)

// strict knows the types of Kubernetes and of the Prometheus operator, and
// takes an unknown or repeated field for an error.
var strict = func() runtime.Decoder {
	s := runtime.NewScheme()
	if err := scheme.AddToScheme(s); err != nil {
		panic(err)
	}
	if err := monitoringv1.AddToScheme(s); err != nil {
		panic(err)
	}
	return serializer.NewCodecFactory(s, serializer.EnableStrict).UniversalDeserializer()
}()

func decode(t *testing.T, text string) []runtime.Object {
	t.Helper()
	var list []runtime.Object
	seen := map[string]bool{}
	for _, doc := range documents.Split(text, -1) {
		if len(bytes.TrimSpace([]byte(comments.ReplaceAllString(doc, "")))) == 0 {
			continue
		}
		o, _, err := strict.Decode([]byte(doc), nil, nil)
		if err != nil {
			t.Fatalf("%v\n%s", err, doc)
		}
		if seen[id(o)] {
			t.Errorf("%s is there twice", id(o))
		}
		seen[id(o)] = true
		list = append(list, o)
	}
	return list
}

var comments = regexp.MustCompile(`(?m)^\s*#.*$`)

// find returns the objects of a type.
func find[T runtime.Object](list []runtime.Object) (found []T) {
	for _, o := range list {
		if t, ok := o.(T); ok {
			found = append(found, t)
		}
	}
	return found
}

func read(t *testing.T, elem ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(append([]string{root}, elem...)...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// A field that does not exist is seen, else the tests that decode say nothing.
func TestStrictDecoding(t *testing.T) {
	for _, doc := range []string{
		"apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {selektor: {a: b}}\n",
		"apiVersion: v1\nkind: Service\nmetadata: {name: a, name: b}\n",
		"apiVersion: monitoring.coreos.com/v1\nkind: ServiceMonitor\nmetadata: {name: a}\nspec: {selector: {}, endpoints: [{porrt: ops}]}\n",
		"apiVersion: v2\nkind: Service\nmetadata: {name: a}\n",
	} {
		if _, _, err := strict.Decode([]byte(doc), nil, nil); err == nil {
			t.Errorf("taken: %s", doc)
		}
	}
}
