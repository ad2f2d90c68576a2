package manifests

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// deadline is how long anything here may take to come about.
const deadline = 2 * time.Minute

// pod is the program of a StatefulSet's first pod, run as a process with the
// files and variables that Kubernetes would give it.
type pod struct {
	t    *testing.T
	name string
	dir  string
	vars []string
	cmd  *exec.Cmd
	done chan struct{}

	mu  sync.Mutex
	out bytes.Buffer
}

func (p *pod) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

// house is a rendering that runs.
type house struct {
	t     *testing.T
	files map[string]map[string]string // content of Secrets and ConfigMaps
	addr  map[string]string            // addresses on loopback by pod and port
}

func newHouse(t *testing.T, list []runtime.Object) *house {
	h := &house{t: t, files: prepared(t), addr: map[string]string{}}
	for _, m := range find[*corev1.ConfigMap](list) {
		h.files["ConfigMap/"+m.Name] = m.Data
	}
	for _, s := range find[*appsv1.StatefulSet](list) {
		for name := range ports(s.Spec.Template.Spec.Containers[0]) {
			h.addr[s.Name+"/"+name] = freeAddr(t)
		}
	}
	return h
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// here replaces the paths and addresses of a container by those of a process.
func (h *house) here(p *pod, c corev1.Container, text string) string {
	pairs := []string{"tls://nats:4222", "tls://" + h.addr["nats/nats"],
		"https://nightjar-admin:8001", "https://" + h.addr["api-gateway/admin"], "https://nightjar-agent:8000", "https://" + h.addr["api-gateway/agent"]}
	for name, port := range ports(c) {
		_, number, _ := strings.Cut(h.addr[p.name+"/"+name], ":")
		pairs = append(pairs, fmt.Sprintf("0.0.0.0:%d", port), h.addr[p.name+"/"+name], fmt.Sprintf(":%d", port), h.addr[p.name+"/"+name])
		if name == "monitor" {
			pairs = append(pairs, fmt.Sprint(port), number)
		}
	}
	for _, m := range c.VolumeMounts {
		pairs = append(pairs, m.MountPath, filepath.Join(p.dir, m.MountPath))
	}
	return strings.NewReplacer(pairs...).Replace(text)
}

// start runs the program of a StatefulSet.
func (h *house) start(s *appsv1.StatefulSet) *pod {
	h.t.Helper()
	binary := s.Name
	if s.Name == natsPod {
		binary = "nats-server"
	}
	return h.run(h.pod(s.Name), binary, s.Spec.Template.Spec)
}

// pod returns a pod that has not been started and whose volumes are empty.
func (h *house) pod(name string) *pod {
	return &pod{t: h.t, name: name, dir: filepath.Join(h.t.TempDir(), name), done: make(chan struct{})}
}

// run runs a program as the container of a pod.
func (h *house) run(p *pod, binary string, spec corev1.PodSpec) *pod {
	h.t.Helper()
	c := spec.Containers[0]
	for _, m := range c.VolumeMounts {
		files := h.volume(spec, m.Name)
		if m.SubPath != "" {
			h.write(p, c, m.MountPath, files[m.SubPath])
			continue
		}
		if err := os.MkdirAll(filepath.Join(p.dir, m.MountPath), 0o700); err != nil {
			h.t.Fatal(err)
		}
		for name, text := range files {
			h.write(p, c, filepath.Join(m.MountPath, name), text)
		}
	}
	vars := map[string]string{}
	for _, e := range c.Env {
		value := e.Value
		if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
			value = h.files["Secret/"+e.ValueFrom.SecretKeyRef.Name][e.ValueFrom.SecretKeyRef.Key]
		} else if e.ValueFrom != nil {
			value = p.name + "-0" // the pod's name
		}
		vars[e.Name] = h.here(p, c, value)
	}
	p.vars = environment(vars)
	args := make([]string, len(c.Args))
	for i, a := range c.Args {
		args[i] = h.here(p, c, a)
	}
	p.cmd = exec.Command(program(h.t, binary), args...)
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = p.vars, p, p
	if err := p.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	go func() { defer close(p.done); _ = p.cmd.Wait() }()
	h.t.Cleanup(p.stop)
	return p
}

// stop ends the program as Kubernetes does, which it must survive cleanly.
func (p *pod) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(deadline):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 && p.name != natsPod {
		p.t.Errorf("%s ends with %d", p.name, code)
	}
	if p.t.Failed() {
		p.mu.Lock()
		defer p.mu.Unlock()
		out := p.out.String()
		p.t.Logf("log of %s:\n%s", p.name, out[max(0, len(out)-2000):])
	}
}

func (h *house) write(p *pod, c corev1.Container, path, text string) {
	h.t.Helper()
	path = filepath.Join(p.dir, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		h.t.Fatal(err)
	}
	if strings.HasSuffix(path, ".yaml") {
		text = h.here(p, c, text)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// volume returns the files of a volume.
func (h *house) volume(spec corev1.PodSpec, name string) map[string]string {
	files := map[string]string{}
	for _, v := range spec.Volumes {
		switch {
		case v.Name != name:
		case v.ConfigMap != nil:
			return h.files["ConfigMap/"+v.ConfigMap.Name]
		case v.Secret != nil && v.Secret.Items == nil:
			return h.files["Secret/"+v.Secret.SecretName]
		case v.Secret != nil:
			for _, item := range v.Secret.Items {
				files[item.Path] = h.files["Secret/"+v.Secret.SecretName][item.Key]
			}
		case v.Projected != nil:
			for _, s := range v.Projected.Sources {
				for file, text := range h.files["ConfigMap/"+s.ConfigMap.Name] {
					files[file] = text
				}
			}
		}
	}
	return files
}

func eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(deadline); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if err = ok(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

// The house runs as the manifests describe it: every program with the files
// and variables of its pod, each with its own key; its health command says so,
// and an operator comes in at the admin API with the key of the secret.
func TestHouse(t *testing.T) {
	list := decode(t, overlay(t, "deploy/manifests/testdata/siem-forwarder"))
	h := newHouse(t, list)
	sets := map[string]*appsv1.StatefulSet{}
	for _, s := range find[*appsv1.StatefulSet](list) {
		sets[s.Name] = s
	}
	h.start(sets[natsPod])
	eventually(t, "NATS is healthy", func() error { return get(http.DefaultClient, "http://"+h.addr["nats/monitor"]+"/healthz", "") })
	pods := map[string]*pod{}
	for _, name := range services("forwarder") {
		pods[name] = h.start(sets[name])
	}
	for name, p := range pods {
		eventually(t, name+" is healthy", func() error {
			cmd := exec.Command(program(t, name), "health")
			cmd.Env = p.vars
			out, err := cmd.CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(h.files["Secret/nightjar-api-tls"]["ca.crt"]))
	operator := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "nightjar-admin.nightjar.svc"}}}
	url := "https://" + h.addr["api-gateway/admin"] + "/endpoints"
	if err := get(operator, url, h.files["Secret/nightjar-admin"]["admin-key"]); err != nil {
		t.Error(err)
	}
	if err := get(operator, url, "another key"); err == nil {
		t.Error("another key opens the admin API")
	}
	backUpAndRestore(t, h, list)
}

func get(client *http.Client, url, key string) error {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Api-Key", key)
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, res.Status)
	}
	return nil
}
