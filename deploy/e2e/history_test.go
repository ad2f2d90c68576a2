package e2e

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// oldManager is the folder of a WHIDS manager.
type oldManager struct {
	t    *testing.T
	dir  string
	file string
}

func newOldManager(t *testing.T) *oldManager {
	o := &oldManager{t: t, dir: t.TempDir()}
	o.file = filepath.Join(o.dir, "manager.toml")
	write(t, o.file, whidsManager)
	for _, sub := range []string{"rules", "containers", "logs", "dumps"} {
		if err := os.MkdirAll(filepath.Join(o.dir, "database", sub), 0o750); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

// put writes a file below the database folder.
func (o *oldManager) put(path string, parts ...[]byte) {
	o.t.Helper()
	path = filepath.Join(o.dir, "database", path)
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		o.t.Fatal(err)
	}
	write(o.t, path, string(bytes.Join(parts, nil)))
}

// zipped is a gzip member as the WHIDS manager writes it, flushed after each
// line.
func zipped(t *testing.T, lines ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	for _, l := range lines {
		_, err := io.WriteString(w, l+"\n")
		if err == nil {
			err = w.Flush()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// oldEvent is an event as the WHIDS manager stores it, with its members in
// order; mark, if not empty, is the signature that the agent found.
func oldEvent(n int, at time.Time, mark string) string {
	gene := ""
	if mark != "" {
		gene = fmt.Sprintf(`"GeneInfo":{"Criticality":8,"Signature":[%q]},`, mark)
	}
	return fmt.Sprintf(`{"Event":{"EventData":{"Image":"C:\\old\\%d.exe"},%s"System":{"Channel":"Old","Computer":"WS","EventID":"1","TimeCreated":{"SystemTime":%q}}}}`,
		n, gene, at.UTC().Format(time.RFC3339Nano))
}

// imported is what a run of import-history said.
type imported struct {
	code   int
	rows   map[string]int
	stdout string
	stderr string
}

var tableRow = regexp.MustCompile(`(?m)^ *([a-zA-Z -]+?)  +(\d+)`)

func (o *oldManager) command(ctx context.Context, url, ca string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, binary, append([]string{"import-history", "--from", o.file, "--url", url, "--ca", ca}, args...)...)
}

// finish waits for a command that may have been started and reads its table.
func finish(t *testing.T, cmd *exec.Cmd, run func() error) imported {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	res := imported{code: cmd.ProcessState.ExitCode(), rows: map[string]int{}, stdout: stdout.String(), stderr: stderr.String()}
	for _, m := range tableRow.FindAllStringSubmatch(res.stdout, -1) {
		res.rows[m[1]], _ = strconv.Atoi(m[2])
	}
	return res
}

func (o *oldManager) importTo(p *proc, args ...string) imported {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(o.t.Context(), deadline)
	defer cancel()
	cmd := o.command(ctx, p.admin, filepath.Join(p.dir, "tls", "ca.pem"), args...)
	return finish(o.t, cmd, cmd.Run)
}

// shows demands rows of the table; the others must be 0.
func (i imported) shows(t *testing.T, what string, code int, want map[string]int) {
	t.Helper()
	for name, n := range i.rows {
		if n != want[name] {
			t.Errorf("%s: %q is %d, want %d", what, name, n, want[name])
		}
	}
	if i.code != code || len(i.rows) < len(want) {
		t.Errorf("%s: exit code %d, want %d", what, i.code, code)
	}
	if t.Failed() {
		t.Fatalf("%s%s", i.stdout, i.stderr)
	}
}

// stands waits until an endpoint's events, or alerts, are exactly these lines
// of what was sent.
func (p *proc) stands(e endpoint, what string, want ...string) {
	p.t.Helper()
	slices.Sort(want)
	eventually(p.t, what+" of "+e.UUID, func() error {
		var got []string
		for _, l := range p.events(e, what+everything) {
			got = append(got, string(l))
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("%d stand there, want %d:\n%s\nwant\n%s", len(got), len(want), strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		return nil
	})
}

// TestImportHistory imports what a WHIDS manager has kept: in both layouts,
// with what a crash left broken, and again.
func TestImportHistory(t *testing.T) {
	o := newOldManager(t)
	first, second, third := whidsEndpoints[0], whidsEndpoints[1], whidsEndpoints[2]
	at := time.Date(2026, 3, 4, 5, 6, 7, 89, time.UTC)
	var e []string
	for n := range 12 {
		mark := ""
		if n%3 == 0 {
			mark = "OldRule"
		}
		e = append(e, oldEvent(n, at.Add(time.Duration(n)*time.Minute), mark))
	}
	broken := zipped(t, e[2], e[3], "lost for ever")
	o.put("logs/"+first.UUID+"/2026-03-04/logs.gz", zipped(t, e[0], e[1], "no json"), broken[:len(broken)-20], zipped(t, e[4]), []byte("garbage"))
	// The alert 6 stands nowhere else: its line in the logs is lost.
	o.put("logs/"+first.UUID+"/2026-03-04/alerts.gz", zipped(t, e[0]), zipped(t, e[3], e[6]))
	o.put("logs/" + first.UUID + "/2026-03-05/logs.gz")
	later := func(line string, detection bool) string {
		data := fmt.Sprintf(`,"EdrData":{"Endpoint":{"UUID":%q,"IP":"10.0.0.1","Hostname":"WS","Group":""},"Event":{"Hash":"x","Detection":%t,"ReceiptTime":"2026-03-04T05:06:07Z"}}`, second.UUID, detection)
		return fmt.Sprintf("%d:%s%s}}", at.UnixNano(), strings.TrimSuffix(line, "}}"), data)
	}
	o.put("logs/events/"+second.UUID+"/20260304/05/logs.gz", zipped(t, later(e[8]+"", false), later(e[9], true)))
	o.put("logs/events/"+second.UUID+"/20260304/05/logs.gz.index", []byte("Start,Stop,Offset,EventCount\n"))
	o.put("logs/detections/"+second.UUID+"/20260304/05/logs.gz", zipped(t, later(e[9], true)))
	const unknown = "dddddddd-4444-0000-0000-000000000004"
	o.put("logs/"+unknown+"/2026-03-04/logs.gz", zipped(t, e[10]))
	o.put("logs/whids.log", []byte(e[11]+"\n"))
	const place = "/{515cd0d1-ab35-60e4-827c-000000004e00}/2252cc3dee2623a44f5d1644338129b9/"
	o.put("dumps/"+first.UUID+place+"event.json.gz", zipped(t, e[3]))
	o.put("dumps/" + first.UUID + place + "empty")
	o.put("dumps/"+first.UUID+place+"changed.txt", []byte("of WHIDS"))
	o.put("dumps/"+first.UUID+"/stray.txt", []byte("stray"))
	o.put("dumps/"+unknown+place+"a.txt", []byte("a"))

	p := start(t, t.TempDir(), "--import-whids", o.file)
	if got := o.importTo(p, "--url", "https://127.0.0.1:1"); got.code != 1 || !strings.Contains(got.stderr, "is the manager running") {
		t.Errorf("without a manager: exit code %d, %s", got.code, got.stderr)
	}
	// The third endpoint is at work meanwhile, the first has a file already.
	p.mustPost(third, []byte(e[0]))
	const upload = `{"filename":"changed.txt","guid":"{515cd0d1-ab35-60e4-827c-000000004e00}","event-hash":"2252cc3dee2623a44f5d1644338129b9","content":"b3RoZXI="}`
	p.data(http.MethodPost, "/endpoints/"+first.UUID+"/artifacts", upload)

	want := map[string]int{"log files read": 5, "events": 7, "alerts": 4, "not JSON": 1, "damaged parts": 2, "lines recovered": 2, "lines torn": 1,
		"dumps imported": 2, "dumps in conflict": 1, "dumps refused": 1, "unknown endpoints": 1, "passed over": 1}
	check := func(what string) {
		t.Helper()
		res := o.importTo(p)
		res.shows(t, what, 0, want)
		for _, s := range []string{unknown, "at byte", "changed.txt", "stray.txt", "whids.log"} {
			if !strings.Contains(res.stderr, s) {
				t.Errorf("%s: nothing is said of %s:\n%s", what, s, res.stderr)
			}
		}
		p.stands(first, "logs", e[0], e[1], e[2], e[3], e[4], e[6])
		p.stands(first, "alerts", e[0], e[3], e[6])
		p.stands(second, "logs", e[8], e[9])
		p.stands(second, "alerts", e[9])
		p.stands(third, "logs", e[0])
	}
	check("first")
	delete(want, "dumps imported")
	want["dumps identical"] = 2
	check("again")
	if got := len(p.alerts()); got != 5 {
		t.Errorf("the SIEM got %d alerts, want 5", got)
	}
	for _, l := range []endpoint{first, second} {
		var got endpoint
		if err := json.Unmarshal(p.data(http.MethodGet, "/endpoints/"+l.UUID, ""), &got); err != nil || got.Hostname != "" || got.IP != "" || !got.Last.IsZero() {
			t.Errorf("the import looks like a contact: %+v %v", got, err)
		}
	}

	// Another manager gets what is not older, from the logs alone.
	other := start(t, t.TempDir(), "--import-whids", o.file)
	res := o.importTo(other, "--since", at.Add(3*time.Minute).Format(time.RFC3339Nano), "--dumps-dir", "off", "--admin-key", adminKey)
	res.shows(t, "since", 0, map[string]int{"log files read": 5, "events": 4, "alerts": 3, "not JSON": 1, "older than --since": 4,
		"damaged parts": 2, "lines recovered": 1, "lines torn": 1, "unknown endpoints": 1, "passed over": 1})
	other.stands(first, "logs", e[3], e[4], e[6])
}

// TestImportHistoryGoesOn breaks an import off where the manager has stored a
// part, in the ways it can end, and repeats it: everything is there, once.
func TestImportHistoryGoesOn(t *testing.T) {
	o := newOldManager(t)
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	lines := map[string][]string{}
	for _, e := range whidsEndpoints {
		for n := range 50 {
			lines[e.UUID] = append(lines[e.UUID], oldEvent(n, at.Add(time.Duration(n)*time.Second), ""))
		}
		o.put("logs/"+e.UUID+"/2026-03-04/logs.gz", zipped(t, lines[e.UUID]...))
	}
	p := start(t, t.TempDir(), "--import-whids", o.file)

	// What the door in between does with the nth POST.
	var posts atomic.Int64
	stuck, busy := make(chan struct{}, 1), make(chan struct{}, 1)
	door := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			switch posts.Add(1) {
			case 1:
				w.Header().Set("Retry-After", "0")
				w.WriteHeader(http.StatusServiceUnavailable)
				busy <- struct{}{}
				return
			case 3, 5:
				stuck <- struct{}{}
				_, _ = io.Copy(io.Discard, r.Body)
				<-r.Context().Done()
				return
			}
		}
		req, err := http.NewRequest(r.Method, p.admin+r.URL.RequestURI(), r.Body)
		if err != nil {
			panic(err)
		}
		req.Header = r.Header.Clone()
		resp, err := p.client.Do(req)
		if err != nil {
			panic(err)
		}
		defer func() { _ = resp.Body.Close() }()
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body)
	}))
	defer door.Close()

	for _, signal := range []os.Signal{os.Kill, syscall.SIGINT} {
		cmd := o.command(t.Context(), door.URL, "")
		res := finish(t, cmd, func() error {
			if err := cmd.Start(); err != nil {
				return err
			}
			select {
			case <-stuck:
			case <-time.After(deadline):
				t.Error("the import has not come so far")
			}
			if err := cmd.Process.Signal(signal); err != nil {
				return err
			}
			return cmd.Wait()
		})
		if signal == syscall.SIGINT && (res.code != 1 || !strings.Contains(res.stderr, "repeat") || res.rows["events"] != 50) {
			t.Errorf("%v: exit code %d\n%s%s", signal, res.code, res.stdout, res.stderr)
		}
	}
	select {
	case <-busy:
	default:
		t.Error("503 was never answered")
	}
	p.kill()
	p.run()
	res := o.importTo(p)
	res.shows(t, "to the end", 0, map[string]int{"log files read": 3, "events": 150})
	for _, e := range whidsEndpoints {
		p.stands(e, "logs", lines[e.UUID]...)
	}
}

func TestImportHistoryRefuses(t *testing.T) {
	o := newOldManager(t)
	ca := filepath.Join(o.dir, "none.pem")
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"no file":         {[]string{"--from", ""}, "--from is missing"},
		"unknown flag":    {[]string{"--form", "x"}, "-form"},
		"no such folder":  {[]string{"--logs-dir", "nowhere"}, "logs-dir nowhere: no such file"},
		"nothing to do":   {[]string{"--logs-dir", "off", "--dumps-dir", "off"}, "names no folder"},
		"no such CA":      {nil, "none.pem"},
		"no URL":          {[]string{"--url", "127.0.0.1:8001"}, "want https://HOST:PORT"},
		"a day of no day": {[]string{"--since", "yesterday"}, "2026-01-31"},
	} {
		cmd := o.command(t.Context(), "https://127.0.0.1:1", ca, c.args...)
		if res := finish(t, cmd, cmd.Run); res.code != 2 || !strings.Contains(res.stderr, c.want) || strings.Contains(res.stderr, "key of") {
			t.Errorf("%s: exit code %d, %s", name, res.code, res.stderr)
		}
	}
	cmd := exec.Command(binary, "import-history", "--help")
	if res := finish(t, cmd, cmd.Run); res.code != 0 || !strings.Contains(res.stdout, "--logs-dir") || !strings.Contains(res.stdout, "repeated") {
		t.Errorf("help: exit code %d, %s", res.code, res.stdout)
	}
}
