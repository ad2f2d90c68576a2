package manifests

import (
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

// binDir is the folder of programs; TestMain removes it.
var binDir string

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard) // Helm tells each symbolic link
	os.Exit(func() int {
		var err error
		if binDir, err = os.MkdirTemp("", "nightjar-manifests-"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(binDir)
		return m.Run()
	}())
}

// build builds all programs, once, as the product's own go.work has them.
var build = sync.OnceValue(func() error {
	args := []string{"build", "-ldflags=-w", "-o", binDir + "/", "./deploy/nats", "./services/standalone", "github.com/nats-io/nats-server/v2"}
	for _, s := range services("forwarder") {
		args = append(args, "./services/"+s)
	}
	cmd := exec.Command("go", args...)
	cmd.Dir = root
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "GOWORK=") }), "GOWORK=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
})

// program returns the path of a program.
func program(t *testing.T, name string) string {
	t.Helper()
	if err := build(); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(binDir, name)
}

// environment is what a program of these tests gets beside its own variables.
func environment(vars map[string]string) []string {
	list := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}
	for name, value := range vars {
		list = append(list, name+"="+value)
	}
	return list
}

// understood checks that a program takes a configuration file and variables
// for what they are: asked for its health where nobody listens, it says that
// nobody is there, and not that a setting is unknown or impossible.
func understood(t *testing.T, name, config string, vars map[string]string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	help, err := exec.Command(program(t, name), "--help").CombinedOutput()
	if err != nil {
		t.Fatal(err)
	}
	for v := range vars {
		flag, ours := strings.CutPrefix(v, "NIGHTJAR_")
		if flag = "--" + strings.ReplaceAll(strings.ToLower(flag), "_", "-"); ours && flag != "--config" && !strings.Contains(string(help), "  "+flag+"\n") {
			t.Errorf("%s has no flag %s for %s", name, flag, v)
		}
	}
	args := []string{lifecycle.HealthCommand, "--ops-addr", "127.0.0.1:1"}
	// Two settings are judged by what only a pod has: a certificate, which
	// TestHouse brings, and a host name that ends with a number.
	switch name {
	case access.Gateway:
		args = append(args, "--tls", "off")
	case access.Ingest:
		args = append(args, "--ordinal", "0")
	}
	cmd := exec.Command(program(t, name), args...)
	cmd.Env = append(environment(vars), "NIGHTJAR_CONFIG="+file)
	out, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != lifecycle.ExitFailed {
		t.Errorf("%s: %v: %s", name, err, out)
	}
}

// Every flag in a configuration file, value in a chart and variable of a pod is
// one that the program has and can use.
func TestSettings(t *testing.T) {
	for name, list := range render(t) {
		for _, s := range find[*appsv1.StatefulSet](list) {
			if s.Name == natsPod {
				continue
			}
			t.Run(name+"/"+s.Name, func(t *testing.T) {
				understood(t, s.Name, configOf(t, list, s.Name), env(s.Spec.Template.Spec.Containers[0]))
			})
		}
	}
	for _, config := range []string{"colour: blue\n", "replicas: 9\n"} {
		t.Run("refused", func(t *testing.T) {
			cmd := exec.Command(program(t, access.Scorer), lifecycle.HealthCommand)
			file := filepath.Join(t.TempDir(), "config.yaml")
			if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd.Env = append(environment(nil), "NIGHTJAR_CONFIG="+file)
			if out, _ := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != lifecycle.ExitUsage {
				t.Errorf("%q: %s", config, out)
			}
		})
	}
}

// configOf returns the configuration file of a service's pods.
func configOf(t *testing.T, list []runtime.Object, service string) string {
	t.Helper()
	for _, m := range find[*corev1.ConfigMap](list) {
		if generated.ReplaceAllString(m.Name, "$1") == "nightjar-config-"+service {
			return m.Data["config.yaml"]
		}
	}
	t.Fatalf("no configuration of %s", service)
	return ""
}

// prepared are the Secrets and ConfigMaps that deploy/nats prints, by name.
func prepared(t *testing.T) map[string]map[string]string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "keys")
	if out, err := exec.Command(program(t, "nats"), "all", "--dir", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text, err := exec.Command(program(t, "nats"), "secrets", "--dir", dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]map[string]string{}
	for _, o := range decode(t, string(text)) {
		switch o := o.(type) {
		case *corev1.Secret:
			found["Secret/"+o.Name] = o.StringData
		case *corev1.ConfigMap:
			found["ConfigMap/"+o.Name] = o.Data
		}
	}
	return found
}

// references calls f for each member of a Secret or ConfigMap that a pod needs.
func references(spec corev1.PodSpec, f func(object, member string)) {
	for _, v := range spec.Volumes {
		if v.Secret != nil {
			f("Secret/"+v.Secret.SecretName, "")
			for _, item := range v.Secret.Items {
				f("Secret/"+v.Secret.SecretName, item.Key)
			}
		}
		if v.ConfigMap != nil {
			f("ConfigMap/"+v.ConfigMap.Name, "")
		}
		if v.Projected != nil {
			for _, source := range v.Projected.Sources {
				f("ConfigMap/"+source.ConfigMap.Name, "")
			}
		}
	}
	for _, e := range spec.Containers[0].Env {
		if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
			f("Secret/"+e.ValueFrom.SecretKeyRef.Name, e.ValueFrom.SecretKeyRef.Key)
		}
	}
}

// Every Secret and ConfigMap that a pod refers to is in the rendering or made
// by deploy/nats, with the members that are asked for; no rendering holds a
// Secret; each service is given its own seed and no other.
func TestReferences(t *testing.T) {
	made := prepared(t)
	for name, list := range render(t) {
		have := map[string]map[string]string{}
		for key, members := range made {
			have[key] = members
		}
		for _, m := range find[*corev1.ConfigMap](list) {
			have["ConfigMap/"+m.Name] = m.Data
		}
		if n := len(find[*corev1.Secret](list)); n > 0 {
			t.Errorf("%s: %d secrets are written down", name, n)
		}
		for _, s := range find[*appsv1.StatefulSet](list) {
			seed := ""
			references(s.Spec.Template.Spec, func(object, member string) {
				members, ok := have[object]
				if !ok {
					t.Errorf("%s: %s refers to %s, which nothing makes", name, s.Name, object)
				} else if _, ok := members[member]; member != "" && !ok {
					t.Errorf("%s: %s refers to %s in %s, which has none", name, s.Name, member, object)
				}
				if _, ok := members["seed.nk"]; ok {
					seed += object
				}
			})
			want := "Secret/nightjar-nats-" + s.Name
			if s.Name == forwarder {
				want = "Secret/nightjar-nats-siem"
			}
			if s.Name != natsPod && seed != want {
				t.Errorf("%s: %s has the seed %s", name, s.Name, seed)
			}
		}
	}
}
