package e2e

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// binary is the standalone program, built once for all tests with buildFlags.
var (
	binary     string
	buildFlags []string
)

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "nightjar-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	binary = filepath.Join(dir, "standalone")
	build := exec.Command("go", append(append([]string{"build"}, buildFlags...), "-o", binary, "./services/standalone")...)
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build standalone: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

const adminKey = "test-operator-key"

// deadline is how long a test waits for anything.
var deadline = 60 * time.Second

// proc is a running standalone.
type proc struct {
	t    *testing.T
	dir  string
	args []string
	// env is added to the environment of the program.
	env []string
	// Addresses as the program printed them.
	admin, agent, nats, ops string

	client *http.Client

	running
}

// start starts a standalone on a folder and waits until it is ready.
func start(t *testing.T, dir string, args ...string) *proc {
	t.Helper()
	p := &proc{t: t, dir: dir, args: args}
	p.endWithTest()
	p.run()
	return p
}

// endWithTest ends the program with the test and shows its log when the test
// has failed.
func (p *proc) endWithTest() { p.endWith(p.t, "standalone", 8000) }

func (p *proc) run() {
	p.t.Helper()
	if err := p.launch(); err != nil {
		p.t.Fatal(err)
	}
	eventually(p.t, "ready", p.ready)
}

// launch starts the program and returns when it has printed its addresses.
func (p *proc) launch() error {
	args := append([]string{"--data-dir", p.dir, "--admin-addr", "127.0.0.1:0", "--agent-addr", "127.0.0.1:0", "--nats-addr", "127.0.0.1:0",
		"--ops-addr", "127.0.0.1:0", "--admin-key", adminKey, "--log-format", "text", "--log-level", "info"}, p.args...)
	cmd := exec.Command(binary, args...)
	cmd.Env = append(append(os.Environ(), "GOTRACEBACK=all"), p.env...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = &p.output
	banner := make(chan map[string]string, 1)
	err = p.begin(cmd, func() {
		fields := map[string]string{}
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			for _, key := range []string{"admin API", "agent API", "NATS", "ops"} {
				if v, ok := strings.CutPrefix(lines.Text(), key); ok {
					fields[key] = strings.TrimSpace(v)
				}
			}
			if fields["ops"] != "" {
				select {
				case banner <- fields:
				default:
				}
			}
		}
	})
	if err != nil {
		return err
	}
	select {
	case f := <-banner:
		p.admin, p.agent, p.nats, p.ops = f["admin API"], f["agent API"], f["NATS"], strings.TrimSuffix(f["ops"], "/readyz")
	case <-p.exited:
		return fmt.Errorf("standalone ended at once: %v\n%s", p.exit, p.log())
	case <-time.After(deadline):
		return errors.New("standalone printed no addresses")
	}
	pool := x509.NewCertPool()
	if pem, err := os.ReadFile(filepath.Join(p.dir, "tls", "ca.pem")); err == nil {
		pool.AppendCertsFromPEM(pem)
	}
	p.client = &http.Client{Timeout: 5 * time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, MaxIdleConnsPerHost: 64},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return nil
}

// ready returns nil when the program is ready, otherwise why not.
func (p *proc) ready() error { return answersOK(p.ops + "/readyz") }

// answersOK asks for a page of status.
func answersOK(url string) error {
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(string(body))
	}
	return err
}

// terminate stops the program with SIGTERM and demands a clean end.
func (p *proc) terminate() {
	p.t.Helper()
	p.stop(p.t, "standalone")
}

// kill ends the program with SIGKILL.
func (p *proc) kill() {
	p.t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		p.t.Fatal(err)
	}
	<-p.exited
}

// eventually repeats a check until it passes or the deadline is over.
func eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	end := time.Now().Add(deadline)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// answer is the admin API's envelope.
type answer struct {
	Data    json.RawMessage `json:"data"`
	Message string          `json:"message"`
	Error   string          `json:"error"`
}

// ask sends a request to the admin API and decodes its one JSON document.
func (p *proc) ask(method, path string, body string) (answer, error) {
	req, err := http.NewRequest(method, p.admin+path, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Api-Key", adminKey)
	resp, err := p.client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{}, err
	}
	if resp.StatusCode != http.StatusOK {
		return answer{}, fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, text)
	}
	var a answer
	if err := json.Unmarshal(text, &a); err != nil {
		return answer{}, fmt.Errorf("%s %s: %w: %.200s", method, path, err, text)
	}
	return a, nil
}

// data asks and demands success.
func (p *proc) data(method, path, body string) json.RawMessage {
	p.t.Helper()
	a, err := p.ask(method, path, body)
	if err != nil {
		p.t.Fatal(err)
	}
	if a.Error != "" {
		p.t.Fatalf("%s %s: %s", method, path, a.Error)
	}
	return a.Data
}

// endpoint is an enrolled endpoint.
type endpoint struct {
	UUID     string    `json:"uuid"`
	Key      string    `json:"key"`
	Hostname string    `json:"hostname"`
	IP       string    `json:"ip"`
	Last     time.Time `json:"last-connection"`
}

func (p *proc) enrol() endpoint {
	p.t.Helper()
	var e endpoint
	if err := json.Unmarshal(p.data(http.MethodPut, "/endpoints", ""), &e); err != nil {
		p.t.Fatal(err)
	}
	return e
}

// request makes an agent's request.
func (p *proc) request(e endpoint, method, path string, body io.Reader, gzipped bool) *http.Request {
	req, err := http.NewRequest(method, p.agent+path, body)
	if err != nil {
		panic(err)
	}
	req.Header.Set("UUID", e.UUID)
	req.Header.Set("Api-Key", e.Key)
	req.Header.Set("Hostname", "host-"+e.UUID[:8])
	if gzipped {
		req.Header.Set("Content-Encoding", "gzip")
	}
	return req
}

// post sends lines as one body; the status is returned.
func (p *proc) post(e endpoint, gzipped bool, lines ...[]byte) (int, error) {
	body := append(bytes.Join(lines, []byte("\n")), '\n')
	if gzipped {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, _ = w.Write(body)
		_ = w.Close()
		body = b.Bytes()
	}
	resp, err := p.client.Do(p.request(e, http.MethodPost, "/logs", bytes.NewReader(body), gzipped))
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

// mustPost posts and demands 200.
func (p *proc) mustPost(e endpoint, lines ...[]byte) {
	p.t.Helper()
	if code, err := p.post(e, true, lines...); err != nil || code != http.StatusOK {
		p.t.Fatalf("POST /logs: %d %v", code, err)
	}
}

// events returns what a query under /endpoints/{uuid}/ answers.
func (p *proc) events(e endpoint, what string) []json.RawMessage {
	p.t.Helper()
	var list []json.RawMessage
	if err := json.Unmarshal(p.data(http.MethodGet, "/endpoints/"+e.UUID+"/"+what, ""), &list); err != nil {
		p.t.Fatal(err)
	}
	return list
}

// everything is a range that holds any event.
const everything = "?stop=9999-12-31T23:59:59Z"

// siem connects as the SIEM.
func (p *proc) siem() *nats.Conn {
	p.t.Helper()
	return p.connect("siem")
}

// connect connects to NATS as one of its users.
func (p *proc) connect(user string) *nats.Conn {
	p.t.Helper()
	seed, err := nats.NkeyOptionFromSeed(filepath.Join(p.dir, user+".nk"))
	if err != nil {
		p.t.Fatal(err)
	}
	opts := []nats.Option{seed, nats.CustomInboxPrefix("_INBOX_" + user), nats.Timeout(10 * time.Second)}
	if ca := filepath.Join(p.dir, "tls", "ca.pem"); fileExists(ca) {
		opts = append(opts, nats.RootCAs(ca))
	}
	nc, err := nats.Connect("nats://"+p.nats, opts...)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(nc.Close)
	return nc
}

func fileExists(f string) bool { _, err := os.Stat(f); return err == nil }

// alerts reads everything that waits for the SIEM through its durable
// consumer and acknowledges it.
func (p *proc) alerts() []jetstream.Msg {
	p.t.Helper()
	nc := p.siem()
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(p.t.Context(), deadline)
	defer cancel()
	c, err := siemConsumer(ctx, js)
	if err != nil {
		p.t.Fatal(err)
	}
	var all []jetstream.Msg
	for {
		batch, err := c.Fetch(256, jetstream.FetchMaxWait(500*time.Millisecond))
		if err != nil {
			p.t.Fatal(err)
		}
		n := 0
		for m := range batch.Messages() {
			n++
			all = append(all, m)
			if err := m.Ack(); err != nil {
				p.t.Fatal(err)
			}
		}
		info, err := c.Info(ctx)
		if err != nil {
			p.t.Fatal(err)
		}
		if n == 0 && info.NumPending == 0 {
			return all
		}
	}
}

// eachOnce reads alerts until there are as many different ones as wanted, and
// demands that no two messages of the stream are the same alert. A message that is
// delivered again, as its acknowledgement took long, is still one.
func eachOnce(t *testing.T, want int, read func() []jetstream.Msg) {
	t.Helper()
	at := map[string]uint64{}
	eventually(t, "alerts at the SIEM", func() error {
		for _, m := range read() {
			meta, err := m.Metadata()
			if err != nil {
				t.Fatal(err)
			}
			id, seq := m.Headers().Get(nats.MsgIdHdr), meta.Sequence.Stream
			if first, known := at[id]; known && first != seq {
				t.Errorf("alert %s stands twice in the stream, at %d and %d", id, first, seq)
			}
			at[id] = seq
		}
		if len(at) != want {
			return fmt.Errorf("%d, want %d", len(at), want)
		}
		return nil
	})
}

// siemConsumer binds to the consumer that the manager made. The SIEM may not
// look at the stream itself, so the consumer is asked for directly.
func siemConsumer(ctx context.Context, js jetstream.JetStream) (jetstream.Consumer, error) {
	return js.Consumer(ctx, "ALERTS", "siem")
}

// metric returns the sum of a metric's samples, of those whose labels contain
// all of want.
func (p *proc) metric(name string, want ...string) float64 {
	p.t.Helper()
	resp, err := http.Get(p.ops + "/metrics")
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var sum float64
	found := false
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
next:
	for lines.Scan() {
		line := lines.Text()
		rest, ok := strings.CutPrefix(line, name)
		if !ok || (rest[0] != ' ' && rest[0] != '{') {
			continue
		}
		for _, w := range want {
			if !strings.Contains(rest, w) {
				continue next
			}
		}
		v, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
		if err != nil {
			p.t.Fatalf("metric %s: %v", line, err)
		}
		found = true
		sum += v
	}
	if !found && len(want) == 0 {
		p.t.Fatalf("no metric %s", name)
	}
	return sum
}
