package e2e

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/nightjar-edr/nightjar/pkg/samples"
	"github.com/nightjar-edr/nightjar/pkg/testlog"
)

// page is docs/siem.md.
func page(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "docs", "siem.md"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// commands are the command lines of the page that begin with prefix, in their
// order.
func commands(t *testing.T, prefix string) []string {
	t.Helper()
	var list []string
	for block := range strings.SplitSeq(page(t), "```sh\n") {
		if command, _, ok := strings.Cut(block, "\n```"); ok && strings.HasPrefix(command, prefix) {
			list = append(list, command)
		}
	}
	return list
}

// build builds a program of the project into a folder.
func build(t *testing.T, dir, pkg string) string {
	t.Helper()
	file := filepath.Join(dir, filepath.Base(pkg))
	cmd := exec.Command("go", "build", "-o", file, pkg)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
	return file
}

// site is a manager with the SIEMs of the page, in the folder data of a folder
// that commands run in.
type site struct {
	*proc
	work string
}

func newSite(t *testing.T) *site {
	t.Helper()
	work := t.TempDir()
	rules := filepath.Join(work, "rules")
	if err := samples.WriteRules(rules); err != nil {
		t.Fatal(err)
	}
	line := page(t)
	_, line, _ = strings.Cut(line, "go run ./services/standalone ")
	line, _, _ = strings.Cut(line, "\n")
	s := &site{work: work}
	s.proc = start(t, filepath.Join(work, "data"), append(strings.Fields(line), "--rules-dir", rules)...)
	return s
}

// play posts the events of one sample endpoint and returns how many alerts
// there are of it.
func (s *site) play(i int) int {
	s.t.Helper()
	story := samples.Endpoints()[i]
	s.mustPost(s.enrol(), story.Lines...)
	return len(story.Expected)
}

// command makes a command of the page with other programs and addresses than
// those that it names.
func (s *site) command(line string, replace ...string) *exec.Cmd {
	s.t.Helper()
	_, port, err := net.SplitHostPort(strings.TrimPrefix(s.nats, "tls://"))
	if err != nil {
		s.t.Fatal(err)
	}
	args := strings.Fields(strings.NewReplacer(append(replace, "127.0.0.1:4222", "127.0.0.1:"+port)...).Replace(line))
	for i, a := range args {
		if a == "--ops-addr" {
			args[i+1] = "127.0.0.1:0"
		}
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = s.work
	return cmd
}

// run starts a command of the page. It is killed with the test, or by stop.
func (s *site) run(line string, replace ...string) (out *testlog.Log, stop func()) {
	s.t.Helper()
	cmd := s.command(line, replace...)
	out = &testlog.Log{}
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, &stderr
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		if s.t.Failed() {
			s.t.Logf("%s:\n%s", line, stderr.String())
		}
	})
	s.t.Cleanup(stop)
	return out, stop
}

// id is what identifies an alert in its payload.
func id(t *testing.T, payload []byte) string {
	t.Helper()
	var e struct {
		Event struct {
			EdrData struct {
				Endpoint struct{ UUID string }
				Event    struct{ Hash string }
			}
		}
	}
	if err := json.Unmarshal(payload, &e); err != nil {
		t.Fatalf("%v: %.200s", err, payload)
	}
	return e.Event.EdrData.Endpoint.UUID + ":" + e.Event.EdrData.Event.Hash
}

// collected notes ids, and counts those that are new.
type collected struct {
	mu  sync.Mutex
	ids map[string]int
}

func (c *collected) add(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ids == nil {
		c.ids = map[string]int{}
	}
	c.ids[id]++
}

// wants waits until there are n different ids.
func (c *collected) wants(t *testing.T, what string, n int) []string {
	t.Helper()
	var list []string
	eventually(t, what, func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		list = nil
		for id := range c.ids {
			list = append(list, id)
		}
		if len(list) != n {
			return fmt.Errorf("%d of %d alerts arrived", len(list), n)
		}
		return nil
	})
	slices.Sort(list)
	return list
}

// TestSIEMExample holds that the program on the page is the one in the project,
// and runs it.
func TestSIEMExample(t *testing.T) {
	program, err := os.ReadFile(filepath.Join(root, "deploy", "siem-example", "main.go"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(page(t), "```go\n"+string(program)+"```\n") {
		t.Error("docs/siem.md shows another program than deploy/siem-example/main.go")
	}
	s := newSite(t)
	want := s.play(0)
	out, stop := s.run(build(t, t.TempDir(), "./deploy/siem-example") + " tls://127.0.0.1:4222 data siem")
	eventually(t, "alerts", func() error {
		if n := strings.Count(out.String(), "\n"); n != want {
			return fmt.Errorf("%d of %d alerts", n, want)
		}
		return nil
	})
	stop()
	for line := range strings.Lines(out.String()) {
		field := strings.SplitN(line, " ", 3)
		if field[0] != id(t, []byte(field[2])) || !strings.HasPrefix(field[1], "edr.alerts.") {
			t.Errorf("printed %.200s", line)
		}
	}
	if left := s.alerts(); len(left) > 1 { // the last acknowledgement may be on its way
		t.Errorf("%d alerts are not acknowledged", len(left))
	}
}

// secure serves TLS with the certificate whose authority it writes to a file.
func (s *site) secure(file string) *tls.Config {
	s.t.Helper()
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(filepath.Join(s.work, file), text, 0o600); err != nil {
		s.t.Fatal(err)
	}
	return &tls.Config{Certificates: server.TLS.Certificates}
}

// web is an HTTPS server whose first request meets an overloaded server.
func (s *site) web(ca, token, header string, serve func(w http.ResponseWriter, r *http.Request)) (addr string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.work, token), []byte("secret\n"), 0o600); err != nil {
		s.t.Fatal(err)
	}
	var first sync.Once
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != header {
			s.t.Errorf("Authorization: %q", r.Header.Get("Authorization"))
		}
		overloaded := false
		first.Do(func() { overloaded = true })
		if overloaded {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		serve(w, r)
	}))
	server.TLS = s.secure(ca)
	server.StartTLS()
	s.t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// TestSIEMForwarder runs the commands of the page against real listeners: each
// target gets every alert of the manager, whatever happens in between.
func TestSIEMForwarder(t *testing.T) {
	s := newSite(t)
	program := build(t, t.TempDir(), "./services/siem-forwarder")
	list := commands(t, "go run ./services/siem-forwarder ")
	if len(list) != 4 {
		t.Fatalf("%d commands on the page", len(list))
	}
	run := []string{"go run ./services/siem-forwarder", program}
	total := s.play(0)
	_, stop := s.run(list[0], run...)
	var archive collected
	s.follow(&archive, total)
	stop() // killed, as a machine that fails
	var elastic, splunk, qradar collected
	s.run(list[1], append(run, "elastic.example:9200", s.elastic(&elastic))...)
	s.run(list[2], append(run, "splunk.example:8088", s.splunk(&splunk))...)
	s.run(list[3], append(run, "qradar.example:6514", s.syslog(&qradar))...)
	total += s.play(1)
	s.run(list[0], run...)
	want := s.follow(&archive, total)
	for name, c := range map[string]*collected{"elastic": &elastic, "splunk": &splunk, "qradar": &qradar} {
		if got := c.wants(t, name, total); !slices.Equal(got, want) {
			t.Errorf("%s got\n%v, the archive\n%v", name, got, want)
		}
	}
	if _, err := os.Stat(filepath.Join(s.work, "data", "refused.jsonl")); err == nil {
		t.Error("alerts were refused")
	}
}

// follow reads the file of the archive until it has n alerts.
func (s *site) follow(c *collected, n int) []string {
	s.t.Helper()
	eventually(s.t, "archive", func() error {
		data, err := os.ReadFile(filepath.Join(s.work, "alerts.jsonl"))
		if err != nil {
			return err
		}
		c.mu.Lock()
		c.ids = nil
		c.mu.Unlock()
		for line := range bytes.Lines(data) {
			if bytes.HasSuffix(line, []byte("\n")) {
				c.add(id(s.t, line))
			}
		}
		if len(c.ids) < n {
			return fmt.Errorf("%d of %d alerts", len(c.ids), n)
		}
		return nil
	})
	return c.wants(s.t, "archive", n)
}

func (s *site) elastic(c *collected) string {
	return s.web("elastic-ca.pem", "elastic.token", "ApiKey secret", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/_bulk" {
			s.t.Errorf("path %s", r.URL.Path)
		}
		var items []string
		lines := bufio.NewScanner(r.Body)
		lines.Buffer(nil, 16<<20)
		for lines.Scan() {
			var action struct {
				Create struct {
					Index string `json:"_index"`
					ID    string `json:"_id"`
				}
			}
			err := json.Unmarshal(lines.Bytes(), &action)
			lines.Scan()
			var doc struct {
				Event struct{ ID, Kind, Original string }
				ECS   struct{ Version string }
			}
			if err2 := json.Unmarshal(lines.Bytes(), &doc); err != nil || err2 != nil {
				s.t.Errorf("bulk request: %v, %v", err, err2)
			}
			if action.Create.Index != "logs-nightjar.alert-default" || doc.Event.Kind != "alert" || doc.ECS.Version == "" ||
				doc.Event.ID != action.Create.ID || id(s.t, []byte(doc.Event.Original)) != doc.Event.ID {
				s.t.Errorf("%+v: %.300s", action, lines.Text())
			}
			c.add(doc.Event.ID)
			items = append(items, `{"create":{"status":201}}`)
		}
		_, _ = io.WriteString(w, `{"items":[`+strings.Join(items, ",")+`]}`)
	})
}

func (s *site) splunk(c *collected) string {
	return s.web("splunk-ca.pem", "splunk.token", "Splunk secret", func(w http.ResponseWriter, r *http.Request) {
		for d := json.NewDecoder(r.Body); ; {
			var e struct {
				Event struct {
					ClassUID int    `json:"class_uid"`
					RawData  string `json:"raw_data"`
				}
				Fields map[string]string
			}
			if err := d.Decode(&e); err == io.EOF {
				break
			} else if err != nil {
				s.t.Error(err)
				break
			}
			if e.Event.ClassUID != 2004 || e.Fields["nightjar_id"] != id(s.t, []byte(e.Event.RawData)) {
				s.t.Errorf("event %+v", e)
			}
			c.add(e.Fields["nightjar_id"])
		}
		_, _ = io.WriteString(w, `{"text":"Success","code":0}`)
	})
}

// syslog is a receiver that closes its first connection without reading.
func (s *site) syslog(c *collected) string {
	ln, err := tls.Listen("tcp", "127.0.0.1:0", s.secure("qradar-ca.pem"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for n := 0; ; n++ {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			if n > 0 {
				s.frames(conn, c)
			} else {
				_ = conn.(*tls.Conn).Handshake()
			}
			_ = conn.Close()
		}
	}()
	return ln.Addr().String()
}

func (s *site) frames(conn net.Conn, c *collected) {
	for r := bufio.NewReader(conn); ; {
		length, err := r.ReadString(' ')
		if err != nil {
			return
		}
		n, err := strconv.Atoi(strings.TrimSpace(length))
		if err != nil {
			s.t.Errorf("frame %q", length)
			return
		}
		m := make([]byte, n)
		if _, err := io.ReadFull(r, m); err != nil {
			return
		}
		_, cef, ok := strings.Cut(string(m), " CEF:0|Nightjar|Nightjar|")
		_, raw, ok2 := strings.Cut(cef, " rawEvent=")
		if !ok || !ok2 {
			s.t.Errorf("message %s", m)
			return
		}
		c.add(id(s.t, []byte(strings.NewReplacer(`\\`, `\`, `\=`, `=`, `\n`, "\n", `\r`, "\r").Replace(raw))))
	}
}
