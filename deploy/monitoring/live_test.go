package monitoring

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
)

// deadline is how long anything here may take to come about.
const deadline = 2 * time.Minute

// exported is what a manager and a forwarder export after some traffic, by
// name.
type exported map[string]*dto.MetricFamily

// scraped runs the programs once for all tests.
var scraped = sync.OnceValues(func() (exported, error) {
	dir, err := os.MkdirTemp("", "nightjar-monitoring-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	return scrape(dir)
})

func families(t *testing.T) exported {
	t.Helper()
	x, err := scraped()
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// build makes the programs with the workspace, which this module is outside of.
func build(dir string) error {
	cmd := exec.Command("go", "build", "-o", dir+string(filepath.Separator), "./services/standalone", "./services/siem-forwarder", "./services/canary")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOWORK=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	return nil
}

// program is a program that runs.
type program struct {
	cmd *exec.Cmd
	out *bufio.Scanner
	log bytes.Buffer
}

func run(path string, args ...string) (*program, error) {
	p := &program{cmd: exec.Command(path, args...)}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out, p.cmd.Stderr = bufio.NewScanner(out), &p.log
	return p, p.cmd.Start()
}

// stop ends the program and returns what it wrote.
func (p *program) stop() string {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	end := time.AfterFunc(deadline, func() { _ = p.cmd.Process.Kill() })
	defer end.Stop()
	for p.out.Scan() { // before Wait, which closes the pipe
	}
	_ = p.cmd.Wait()
	return p.log.String()
}

// scrape starts a manager, a forwarder and a canary, uses them, and reads their
// metrics.
func scrape(dir string) (x exported, err error) {
	if err := build(dir); err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "data")
	manager, err := run(filepath.Join(dir, "standalone"), "--data-dir", data, "--admin-addr", "127.0.0.1:0", "--agent-addr", "127.0.0.1:0",
		"--nats-addr", "127.0.0.1:0", "--ops-addr", "127.0.0.1:0", "--admin-key", "key", "--max-store", "10GiB")
	if err != nil {
		return nil, err
	}
	ended := func(p *program) {
		if log := p.stop(); err != nil {
			err = fmt.Errorf("%w\n%s", err, log)
		}
	}
	defer ended(manager)
	addr := map[string]string{}
	for addr["ops"] == "" && manager.out.Scan() {
		for _, name := range []string{"admin API", "agent API", "NATS", "ops"} {
			if v, ok := strings.CutPrefix(manager.out.Text(), name); ok {
				addr[name] = strings.TrimSpace(v)
			}
		}
	}
	ops := strings.TrimSuffix(addr["ops"], "/readyz")
	if err := await(func() error { _, err := get(ops + "/readyz"); return err }); err != nil {
		return nil, fmt.Errorf("manager: %w", err)
	}
	ca := filepath.Join(data, "tls", "ca.pem")
	if err := use(addr["admin API"], addr["agent API"], ca); err != nil {
		return nil, err
	}
	forwarderOps, err := freeAddr()
	if err != nil {
		return nil, err
	}
	forwarder, err := run(filepath.Join(dir, "siem-forwarder"), "--nats-url", "tls://"+addr["NATS"], "--nats-nkey", filepath.Join(data, "siem.nk"), "--nats-ca", ca,
		"--data-dir", filepath.Join(dir, "forwarder"), "--output", filepath.Join(dir, "alerts"), "--ops-addr", forwarderOps)
	if err != nil {
		return nil, err
	}
	defer ended(forwarder)
	canaryOps, err := freeAddr()
	if err != nil {
		return nil, err
	}
	canary, err := run(filepath.Join(dir, "canary"), "--nats-url", "tls://"+addr["NATS"], "--nats-nkey", filepath.Join(data, "siem.nk"), "--nats-ca", ca,
		"--data-dir", filepath.Join(dir, "canary-data"), "--admin-url", addr["admin API"], "--agent-url", addr["agent API"], "--api-ca", ca, "--admin-key", "key",
		"--ops-addr", canaryOps)
	if err != nil {
		return nil, err
	}
	defer ended(canary)
	// Everything is there once the slowest has come: streams are looked at
	// every few seconds.
	err = await(func() error {
		x = exported{}
		for _, url := range []string{ops + "/metrics", "http://" + forwarderOps + "/metrics", "http://" + canaryOps + "/metrics"} {
			if err := x.read(url); err != nil {
				return err
			}
		}
		for _, want := range []string{"nightjar_nats_certificate_expiry_timestamp_seconds", "nightjar_api_gateway_stream_bytes", "nightjar_rule_engine_siem_pending_alerts",
			"nightjar_report_scorer_stream_bytes", "nightjar_log_ingest_stream_bytes", "nightjar_command_dispatch_stream_bytes", "nightjar_endpoint_registry_stream_bytes"} {
			if x[want] == nil {
				return errors.New("no " + want)
			}
		}
		return nil
	})
	return x, err
}

// read adds what is exported at an address. A name that two programs export
// gets the samples of both.
func (x exported) read(url string) error {
	body, err := get(url)
	if err != nil {
		return err
	}
	var p expfmt.TextParser
	list, err := p.TextToMetricFamilies(bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("%s: %w", url, err)
	}
	for name, f := range list {
		if x[name] == nil {
			x[name] = f
			continue
		}
		x[name].Metric = append(x[name].Metric, f.Metric...)
	}
	return nil
}

// use makes requests of each kind, so that metrics that come with the first of
// them are there.
func use(admin, agent, caFile string) error {
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	client := &http.Client{Timeout: deadline, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}
	ask := func(method, url, body string, header map[string]string) (string, error) {
		req, err := http.NewRequest(method, url, strings.NewReader(body))
		if err != nil {
			return "", err
		}
		for k, v := range header {
			req.Header.Set(k, v)
		}
		resp, err := client.Do(req)
		if err != nil {
			return "", err
		}
		defer func() { _ = resp.Body.Close() }()
		text, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s %s: %s %s", method, url, resp.Status, text)
		}
		return string(text), err
	}
	key := map[string]string{"Api-Key": "key"}
	text, err := ask(http.MethodPut, admin+"/endpoints", "", key)
	if err != nil {
		return err
	}
	uuid, endpointKey := member(text, "uuid"), member(text, "key")
	if _, err := ask(http.MethodPost, agent+"/logs", `{"Event":{"GeneInfo":{"Signature":["a"],"Criticality":9}}}`+"\n", map[string]string{"UUID": uuid, "Api-Key": endpointKey, "Hostname": "h"}); err != nil {
		return err
	}
	for _, path := range []string{"/rules", "/endpoints/" + uuid + "/logs", "/endpoints/" + uuid + "/report", "/endpoints/" + uuid + "/command"} {
		if _, err := ask(http.MethodGet, admin+path, "", key); err != nil {
			return err
		}
	}
	// An endpoint that was heard of shows when, which the runbooks rely on.
	return await(func() error {
		list, err := ask(http.MethodGet, admin+"/endpoints", "", key)
		if err == nil && !strings.Contains(list, `"last-connection":"2`) {
			err = fmt.Errorf("no last connection in %s", list)
		}
		return err
	})
}

// member returns a text member of a JSON document.
func member(text, name string) string {
	_, rest, _ := strings.Cut(text, `"`+name+`":"`)
	value, _, _ := strings.Cut(rest, `"`)
	return value
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String(), nil
}

func get(url string) ([]byte, error) {
	client := &http.Client{Timeout: 10 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s %s", url, resp.Status, body)
	}
	return body, err
}

// await repeats a check until it passes.
func await(check func() error) error {
	err := check()
	for end := time.Now().Add(deadline); err != nil && time.Now().Before(end); err = check() {
		time.Sleep(100 * time.Millisecond)
	}
	return err
}

// labels returns the labels of a metric with their values.
func (x exported) labels(name string) map[string][]string {
	found := map[string][]string{}
	for _, m := range x[name].GetMetric() {
		for _, l := range m.GetLabel() {
			if !slices.Contains(found[l.GetName()], l.GetValue()) {
				found[l.GetName()] = append(found[l.GetName()], l.GetValue())
			}
		}
	}
	return found
}
