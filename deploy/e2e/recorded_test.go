//go:build recorded

package e2e

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"
)

// recorded returns a path within the recorded data.
func recorded(t *testing.T, parts ...string) string {
	t.Helper()
	base := os.Getenv("NIGHTJAR_TESTDATA")
	if base == "" {
		t.Fatal("NIGHTJAR_TESTDATA is not set: it names the folder of recorded data")
	}
	path := filepath.Join(append([]string{base, "data"}, parts...)...)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("the recorded data is missing: %v (NIGHTJAR_TESTDATA=%s)", err, base)
	}
	return path
}

// expectation is what plain gene finds in a file.
type expectation struct {
	Alerts        int            `json:"alerts"`
	ByCriticality map[string]int `json:"alerts_by_criticality"`
	BySignature   map[string]int `json:"by_signature"`
	Events        int            `json:"events"`
	Filtered      int            `json:"filtered"`
}

// recording is a file of recorded events.
type recording struct {
	name   string
	packed []byte
	lines  int
	// marks are the signatures an agent had put into an event, by hash.
	marks   map[string][]string
	untimed int
	expect  expectation
	at      endpoint
}

func recordedFiles(t *testing.T, expected string) []*recording {
	t.Helper()
	text, err := os.ReadFile(recorded(t, expected))
	if err != nil {
		t.Fatal(err)
	}
	var expect map[string]expectation
	if err := json.Unmarshal(text, &expect); err != nil {
		t.Fatal(err)
	}
	paths, err := filepath.Glob(filepath.Join(recorded(t, "events"), "*.jsonl.gz"))
	if err != nil || len(paths) != len(expect) {
		t.Fatalf("%d files of events where %d are expected: %v", len(paths), len(expect), err)
	}
	var files []*recording
	for _, path := range paths {
		f := &recording{name: filepath.Base(path), marks: map[string][]string{}}
		var ok bool
		if f.expect, ok = expect[f.name]; !ok {
			t.Fatalf("nothing is expected of %s", f.name)
		}
		if f.packed, err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
		z, err := gzip.NewReader(bytes.NewReader(f.packed))
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(z)
		lines.Buffer(nil, 16<<20)
		for lines.Scan() {
			f.look(t, lines.Bytes())
		}
		if lines.Err() != nil || f.lines != f.expect.Events {
			t.Fatalf("%s: %d events, want %d: %v", f.name, f.lines, f.expect.Events, lines.Err())
		}
		files = append(files, f)
	}
	return files
}

// look notes of an event what the test expects of it beside gene's verdict.
func (f *recording) look(t *testing.T, line []byte) {
	t.Helper()
	f.lines++
	var doc struct {
		Event struct {
			GeneInfo struct{ Signature json.RawMessage }
			System   struct {
				TimeCreated struct{ SystemTime json.RawMessage }
			}
		}
		Info struct {
			UTC string `json:"utc_time"`
		} `json:"info"`
	}
	if err := json.Unmarshal(line, &doc); err != nil {
		t.Fatalf("%s: line %d: %v", f.name, f.lines, err)
	}
	var mark []string
	if json.Unmarshal(doc.Event.GeneInfo.Signature, &mark) == nil && len(mark) > 0 {
		sum := sha256.Sum256(line)
		f.marks[hex.EncodeToString(sum[:16])] = mark
	}
	var at string
	_ = json.Unmarshal(doc.Event.System.TimeCreated.SystemTime, &at)
	if at == "" {
		at = doc.Info.UTC
	}
	if _, err := time.Parse(time.RFC3339Nano, at); err != nil {
		f.untimed++
	}
}

func copyRules(t *testing.T, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, n := range names {
		text, err := os.ReadFile(recorded(t, "rules", n))
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, n), string(text))
	}
	return dir
}

// TestRecordedDetections posts every recorded event through POST /logs and
// holds alerts, signatures, criticalities and filtered events against what
// plain gene finds.
func TestRecordedDetections(t *testing.T) {
	for _, c := range []struct {
		name, expected string
		rules          []string
	}{
		{"gene and sigma rules, v2", "expected-detections.json", []string{"gene-rules-v2.gen", "sigma-converted-v2.gen"}},
		{"gene rules, given as v1", "expected-detections-v1-rules.json", []string{"gene-rules-v1.gen"}},
		{"gene rules with templates", "expected-detections-gene-rules-only.json", []string{"gene-rules-v2-templated.gen", "regexp-templates.toml"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := recordedFiles(t, c.expected)
			p := start(t, t.TempDir(), "--rules-dir", copyRules(t, c.rules...))
			replay(t, p, files)
			verify(t, p, files)
		})
	}
}

// replay posts each file whole, gzipped as it is, for an endpoint of its own.
func replay(t *testing.T, p *proc, files []*recording) {
	t.Helper()
	for _, f := range files {
		f.at = p.enrol()
		f.post(t, p)
	}
}

func (f *recording) post(t *testing.T, p *proc) {
	t.Helper()
	for try := 0; ; try++ {
		resp, err := p.client.Do(p.request(f.at, http.MethodPost, "/logs", bytes.NewReader(f.packed), true))
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		if try > 300 {
			t.Fatalf("%s: %v %v", f.name, resp, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// verify waits for the pipeline and compares everything.
func verify(t *testing.T, p *proc, files []*recording) {
	t.Helper()
	total, filtered, untimed := 0, 0, 0
	for _, f := range files {
		total, filtered, untimed = total+f.lines, filtered+f.expect.Filtered, untimed+f.untimed
	}
	eventually(t, "every event is looked at", func() error {
		if n := p.metric("nightjar_rule_engine_events_total"); int(n) != total {
			return fmt.Errorf("%v of %d events", n, total)
		}
		return nil
	})
	if n := p.metric("nightjar_rule_engine_filtered_events_total"); int(n) != filtered {
		t.Errorf("%v filtered events, want %d", n, filtered)
	}
	eventually(t, "every event is stored", func() error {
		if n := p.metric("nightjar_log_ingest_events_stored_total"); int(n) != total {
			return fmt.Errorf("%v of %d events", n, total)
		}
		return nil
	})
	if n := p.metric("nightjar_log_ingest_events_untimed_total"); int(n) != untimed {
		t.Errorf("%v events without a usable time, want %d", n, untimed)
	}
	if n := p.metric("nightjar_log_ingest_events_repeated_total"); n != 0 {
		t.Errorf("%v events were taken for repetitions, the files hold none", n)
	}
	compareAlerts(t, p, files)
}

// compareAlerts compares the alerts at the SIEM and in the API.
func compareAlerts(t *testing.T, p *proc, files []*recording) {
	t.Helper()
	byEndpoint := map[string]*recording{}
	for _, f := range files {
		byEndpoint[f.at.UUID] = f
	}
	type tally struct {
		alerts, byManager int
		criticality       map[string]int
		signature         map[string]int
	}
	got := map[*recording]*tally{}
	for _, f := range files {
		got[f] = &tally{criticality: map[string]int{}, signature: map[string]int{}}
	}
	seen := map[string]bool{}
	for _, m := range p.alerts() {
		h := m.Headers()
		f := byEndpoint[h.Get("Nightjar-Endpoint")]
		if id := h.Get("Nats-Msg-Id"); seen[id] {
			t.Errorf("alert %s came twice", id)
		} else {
			seen[id] = true
		}
		var doc struct {
			Event struct {
				GeneInfo struct {
					Signature   []string
					Criticality int
				}
				EdrData struct{ Event struct{ Hash string } }
			}
		}
		if err := json.Unmarshal(m.Data(), &doc); err != nil {
			t.Fatal(err)
		}
		g := got[f]
		g.alerts++
		mark := f.marks[doc.Event.EdrData.Event.Hash]
		origin := "manager"
		found := doc.Event.GeneInfo.Signature
		if mark != nil {
			if len(found) < len(mark) || !slices.Equal(found[:len(mark)], mark) {
				t.Errorf("%s: signatures %v do not begin with the agent's %v", f.name, found, mark)
			}
			found = found[len(mark):]
			if origin = "agent"; len(found) > 0 {
				origin = "both"
			}
		}
		if h.Get("Nightjar-Origin") != origin {
			t.Errorf("%s: origin %s, want %s", f.name, h.Get("Nightjar-Origin"), origin)
		}
		if len(found) > 0 {
			g.byManager++
			g.criticality[strconv.Itoa(doc.Event.GeneInfo.Criticality)]++
		}
		for _, s := range found {
			g.signature[s]++
		}
	}
	for _, f := range files {
		g := got[f]
		if g.byManager != f.expect.Alerts {
			t.Errorf("%s: %d events marked by the manager, want %d", f.name, g.byManager, f.expect.Alerts)
		}
		compare(t, f.name+" signatures", g.signature, f.expect.BySignature)
		// Where an agent had marked an event the criticality is the larger
		// of the two, so only unmarked files can be compared with gene's.
		if len(f.marks) == 0 {
			compare(t, f.name+" criticalities", g.criticality, f.expect.ByCriticality)
		}
		eventually(t, f.name+" in the API", func() error {
			if n := p.streamed(f.at, "alerts"); n != g.alerts {
				return fmt.Errorf("%d alerts, want %d", n, g.alerts)
			}
			return nil
		})
		if n := p.streamed(f.at, "logs"); n != f.lines {
			t.Errorf("%s: %d events in the API, want %d", f.name, n, f.lines)
		}
		t.Logf("%-30s %6d events, %5d alerts (%d by the manager), %4d marked by an agent, %6d without a usable time", f.name, f.lines, g.alerts, g.byManager, len(f.marks), f.untimed)
	}
}

// streamed counts what a query answers without keeping it.
func (p *proc) streamed(e endpoint, what string) int {
	p.t.Helper()
	req, err := http.NewRequest(http.MethodGet, p.admin+"/endpoints/"+e.UUID+"/"+what+everything, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set("Api-Key", adminKey)
	resp, err := p.client.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	dec := json.NewDecoder(resp.Body)
	for range 3 {
		if _, err := dec.Token(); err != nil {
			p.t.Fatal(err)
		}
	}
	n := 0
	for ; dec.More(); n++ {
		var one json.RawMessage
		if err := dec.Decode(&one); err != nil {
			p.t.Fatal(err)
		}
	}
	return n
}

// TestRecordedRestart stops the manager in the middle of the recorded load,
// once politely and once not, and demands the same counts.
func TestRecordedRestart(t *testing.T) {
	files := recordedFiles(t, "expected-detections-gene-rules-only.json")
	p := start(t, t.TempDir(), "--rules-dir", copyRules(t, "gene-rules-v2.gen"))
	for _, f := range files {
		f.at = p.enrol()
	}
	posted := make(chan struct{})
	address := make(chan *proc, 1) // whoever holds it may talk to the manager
	address <- p
	go func() {
		defer close(posted)
		for _, f := range files {
			for try := range 300 {
				q := <-address
				req := q.request(f.at, http.MethodPost, "/logs", bytes.NewReader(f.packed), true)
				client := q.client
				address <- q
				resp, err := client.Do(req)
				if err == nil {
					_ = resp.Body.Close()
					if resp.StatusCode == http.StatusOK {
						break
					}
				}
				if try == 299 {
					t.Errorf("%s: never acknowledged: %v", f.name, err)
				}
				time.Sleep(50 * time.Millisecond)
			}
		}
	}()
	for i, stop := range []func(*proc){(*proc).terminate, (*proc).kill, (*proc).kill} {
		eventually(t, "load", func() error {
			if n := p.metric("nightjar_rule_engine_events_total"); int(n) < 8000*(i+1) {
				return fmt.Errorf("%v events", n)
			}
			return nil
		})
		stop(p)
		q := <-address
		p.run()
		address <- q
	}
	<-posted
	for _, f := range files {
		eventually(t, f.name, func() error {
			if n := p.streamed(f.at, "logs"); n != f.lines {
				return fmt.Errorf("%d of %d events stored", n, f.lines)
			}
			return nil
		})
	}
	eventually(t, "the rule-engine is done", func() error {
		if n := p.metric("nightjar_rule_engine_consumer_pending"); n != 0 {
			return fmt.Errorf("%v batches wait", n)
		}
		return nil
	})
	eventually(t, "alerts are stored", func() error {
		for _, f := range files {
			want := f.expect.Alerts
			if len(f.marks) > 0 {
				want = len(f.marks) // every event of these files is marked
			}
			if n := p.streamed(f.at, "alerts"); n != want {
				return fmt.Errorf("%s: %d alerts, want %d", f.name, n, want)
			}
		}
		return nil
	})
	compareAlerts(t, p, files)
}
