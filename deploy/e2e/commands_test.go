package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// command is a command as the admin API shows it and agents get it.
type command struct {
	UUID      string          `json:"uuid"`
	Name      string          `json:"name"`
	Args      []string        `json:"args"`
	Drop      []file          `json:"drop"`
	Fetch     map[string]file `json:"fetch"`
	Stdout    json.RawMessage `json:"stdout"`
	Stderr    []byte          `json:"stderr"`
	Error     string          `json:"error"`
	Sent      bool            `json:"sent"`
	Completed bool            `json:"completed"`
	Timeout   time.Duration   `json:"timeout"`
	SentTime  time.Time       `json:"sent-time"`
}

type file struct {
	UUID  string `json:"uuid"`
	Name  string `json:"name"`
	Data  []byte `json:"data"`
	Error string `json:"error"`
}

// command asks an endpoint to do something.
func (p *proc) command(e endpoint, body string) command {
	p.t.Helper()
	var shown struct {
		UUID    string  `json:"uuid"`
		Command command `json:"command"`
	}
	if err := json.Unmarshal(p.data(http.MethodPost, "/endpoints/"+e.UUID+"/command", body), &shown); err != nil {
		p.t.Fatal(err)
	}
	if shown.UUID != e.UUID || shown.Command.UUID == "" || shown.Command.Sent {
		p.t.Fatalf("POST of a command answers %+v", shown)
	}
	return shown.Command
}

// newest returns the command that the admin API shows of an endpoint.
func (p *proc) newest(e endpoint, query string) command {
	p.t.Helper()
	var c command
	if err := json.Unmarshal(p.data(http.MethodGet, "/endpoints/"+e.UUID+"/command"+query, ""), &c); err != nil {
		p.t.Fatal(err)
	}
	return c
}

// poll asks for a command as an agent does, nil when there is none.
func (p *proc) poll(e endpoint) (*command, error) {
	resp, err := p.client.Do(p.request(e, http.MethodGet, "/commands", nil, false))
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	switch resp.StatusCode {
	case http.StatusNoContent:
		return nil, nil
	case http.StatusOK:
	default:
		return nil, fmt.Errorf("GET /commands: %s", resp.Status)
	}
	var c command
	if err := json.NewDecoder(resp.Body).Decode(&c); err != nil {
		return nil, err
	}
	return &c, nil
}

// fetchCommand polls until a command comes.
func (p *proc) fetchCommand(e endpoint) *command {
	p.t.Helper()
	var c *command
	eventually(p.t, "a command is handed out", func() (err error) {
		if c, err = p.poll(e); err == nil && c == nil {
			err = fmt.Errorf("nothing to do")
		}
		return err
	})
	return c
}

// answer sends a result and demands 200.
func (p *proc) answer(e endpoint, body io.Reader) {
	p.t.Helper()
	resp, err := p.client.Do(p.request(e, http.MethodPost, "/commands", body, false))
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK || len(text) > 0 {
		p.t.Fatalf("POST /commands: %s %q %v", resp.Status, text, err)
	}
}

// TestCommandWalk takes commands from the operator to the endpoint and back,
// across crashes of the manager.
func TestCommandWalk(t *testing.T) {
	dir, drops := t.TempDir(), t.TempDir()
	tool := bytes.Repeat([]byte("\x7fELF tool "), 200<<10)
	if err := os.WriteFile(filepath.Join(drops, "tool"), tool, 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, dir, "--drop-dir", drops)
	e := p.enrol()
	if c, err := p.poll(e); err != nil || c != nil {
		t.Fatalf("before any command: %+v, %v", c, err)
	}
	first := p.command(e, `{"command-line":"tool --fast 'a b'","drop-files":["tool"],"fetch-files":["/tmp/out"],"timeout":30}`)
	second := p.command(e, `{"command-line":"whoami"}`)
	if got := p.newest(e, ""); got.UUID != second.UUID || got.Sent {
		t.Fatalf("newest is %+v", got)
	}
	p.kill()
	p.run()

	// Many polls at once: each command goes to one of them, in order.
	got := p.fetchCommand(e)
	if got.UUID != first.UUID || got.Name != "tool" || fmt.Sprint(got.Args) != "[--fast a b]" || got.Timeout != 30*time.Second ||
		got.Sent || len(got.Drop) != 1 || got.Drop[0].Name != "tool" || !bytes.Equal(got.Drop[0].Data, tool) || got.Fetch["/tmp/out"].UUID == "" {
		t.Fatalf("handed out was %s %s %v", got.UUID, got.Name, got.Args)
	}
	var mu sync.Mutex
	handed := map[string]int{}
	var polls sync.WaitGroup
	for range 16 {
		polls.Go(func() {
			c, err := p.poll(e)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Errorf("poll: %v", err)
			} else if c != nil {
				handed[c.UUID]++
			}
		})
	}
	polls.Wait()
	if len(handed) != 1 || handed[second.UUID] != 1 {
		t.Fatalf("handed out were %v, want %s once", handed, second.UUID)
	}
	p.kill()
	p.run()
	if c, err := p.poll(e); err != nil || c != nil {
		t.Fatalf("after a crash %+v was handed out again, %v", c, err)
	}

	// A result with a file, while somebody waits for the other one's.
	out := bytes.Repeat([]byte{0, 1, 2, 0xff}, 300<<10)
	result := func(c command, stdout string) io.Reader {
		return strings.NewReader(`{"uuid":"` + c.UUID + `","name":"/bin/x","args":["x"],"drop":[],"fetch":{"/tmp/out":{"uuid":"` + c.Fetch["/tmp/out"].UUID +
			`","name":"","data":"` + base64.StdEncoding.EncodeToString(out) + `","error":""}},"stdout":` + stdout + `,"stderr":null,"error":"","expect-json":true}`)
	}
	p.answer(e, result(*got, `{"user":"root"}`))
	answered := make(chan error, 1)
	go func() {
		a, err := p.ask(http.MethodGet, "/endpoints/"+e.UUID+"/command?wait=true&wait-timeout=1m", "")
		var c command
		if err == nil {
			err = json.Unmarshal(a.Data, &c)
		}
		if err == nil && (c.UUID != second.UUID || !c.Completed || string(c.Stdout) != `"cm9vdAo="`) {
			err = fmt.Errorf("waited for %s, completed %t, stdout %s", c.UUID, c.Completed, c.Stdout)
		}
		answered <- err
	}()
	p.answer(e, result(second, `"cm9vdAo="`))
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
	p.answer(e, result(second, `"bm8K"`)) // repeated
	p.answer(p.enrol(), result(*got, `"bm8K"`))

	third := p.command(e, `{"command-line":"never"}`)
	p.data(http.MethodDelete, "/endpoints/"+e.UUID+"/command/"+third.UUID, "")
	p.terminate()
	p.run()
	if c, err := p.poll(e); err != nil || c != nil {
		t.Fatalf("the cancelled command was handed out: %+v, %v", c, err)
	}
	var history []struct{ UUID, State, Operator string }
	if err := json.Unmarshal(p.data(http.MethodGet, "/endpoints/"+e.UUID+"/commands", ""), &history); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("[{%s cancelled admin} {%s completed admin} {%s completed admin}]", third.UUID, second.UUID, first.UUID)
	if fmt.Sprint(history) != want {
		t.Errorf("history is %v, want %s", history, want)
	}
	var done command
	if err := json.Unmarshal(p.data(http.MethodGet, "/endpoints/"+e.UUID+"/commands/"+first.UUID, ""), &done); err != nil {
		t.Fatal(err)
	}
	if !done.Completed || string(done.Stdout) != `{"user":"root"}` || !bytes.Equal(done.Fetch["/tmp/out"].Data, out) || done.SentTime.IsZero() {
		t.Errorf("the first command is completed %t, stdout %s, %d bytes fetched", done.Completed, done.Stdout, len(done.Fetch["/tmp/out"].Data))
	}
	if a, err := p.ask(http.MethodDelete, "/endpoints/"+e.UUID+"/command/"+first.UUID, ""); err != nil || a.Message != "NOK" {
		t.Errorf("cancelling a completed command: %+v, %v", a, err)
	}
	if log := p.log(); strings.Contains(strings.ToLower(log), "permissions violation") || strings.Contains(log, "not deleted") {
		t.Error("a service may not do on NATS what it has to")
	}
}

// TestLargeResult takes a file of 240 MB, which is a body of 320 MB, and gives
// it back, without the manager holding it in memory.
func TestLargeResult(t *testing.T) {
	const size = 240_000_000
	p := start(t, t.TempDir(), "--tls", "off")
	e := p.enrol()
	p.command(e, `{"command-line":"collect","fetch-files":["/dump"]}`)
	c := p.fetchCommand(e)
	before := p.metric("process_resident_memory_bytes")
	peak, stop := make(chan float64), make(chan struct{})
	go func() {
		most := 0.0
		for {
			select {
			case <-stop:
				peak <- most
				return
			case <-time.After(50 * time.Millisecond):
			}
			resp, err := http.Get(p.ops + "/metrics")
			if err != nil {
				continue
			}
			text, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			var rss float64
			if _, after, ok := strings.Cut(string(text), "\nprocess_resident_memory_bytes "); ok {
				_, _ = fmt.Sscan(after, &rss)
			}
			most = max(most, rss)
		}
	}()
	body := func() io.Reader {
		r, w := io.Pipe()
		go func() {
			enc := base64.NewEncoder(base64.StdEncoding, w)
			_, err := io.CopyN(enc, pattern{}, size)
			_ = enc.Close()
			w.CloseWithError(err)
		}()
		return io.MultiReader(strings.NewReader(`{"uuid":"`+c.UUID+`","name":"x","fetch":{"/dump":{"uuid":"1","name":"","error":"","data":"`),
			r, strings.NewReader(`"}},"stdout":null,"stderr":null,"error":""}`))
	}
	p.answer(e, body())
	req, err := http.NewRequest(http.MethodGet, p.admin+"/endpoints/"+e.UUID+"/command/files", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Api-Key", adminKey)
	resp, err := p.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	shown, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	close(stop)
	if most := <-peak; most-before > size {
		t.Errorf("resident memory rose from %.0f MB to %.0f MB", before/1e6, most/1e6)
	}
	var a struct{ Data map[string]file }
	if err := json.Unmarshal(shown, &a); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, size)
	if _, err := io.ReadFull(pattern{}, want); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Data["/dump"].Data, want) {
		t.Fatalf("%d bytes came back, not the %d that were sent", len(a.Data["/dump"].Data), size)
	}
}

// pattern is bytes that differ from their neighbours, without end.
type pattern struct{}

func (pattern) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(i * 7)
	}
	return len(p), nil
}
