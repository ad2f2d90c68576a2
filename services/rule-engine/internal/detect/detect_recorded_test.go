//go:build recorded

package detect

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/nightjar-edr/nightjar/services/rule-engine/internal/rules"
)

// recordedData returns the folder of recorded events and rules.
func recordedData(tb testing.TB) string {
	tb.Helper()
	root := os.Getenv("NIGHTJAR_TESTDATA")
	if root == "" {
		tb.Fatal("NIGHTJAR_TESTDATA is not set: it names the folder with the recorded events and rules")
	}
	root = filepath.Join(root, "data")
	if _, err := os.Stat(filepath.Join(root, "events")); err != nil {
		tb.Fatalf("NIGHTJAR_TESTDATA: %v", err)
	}
	return root
}

func recordedRules(tb testing.TB, names ...string) []*rules.Rule {
	tb.Helper()
	var all []byte
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(recordedData(tb), "rules", name))
		if err != nil {
			tb.Fatal(err)
		}
		all = append(append(all, b...), '\n')
	}
	return mustParse(tb, string(all))
}

func recordedEvents(tb testing.TB, file string) [][]byte {
	tb.Helper()
	f, err := os.Open(file)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		tb.Fatal(err)
	}
	sc := bufio.NewScanner(z)
	sc.Buffer(nil, 8<<20)
	var lines [][]byte
	for sc.Scan() {
		lines = append(lines, slices.Clone(sc.Bytes()))
	}
	if err := sc.Err(); err != nil {
		tb.Fatal(err)
	}
	return lines
}

func recordedEventFiles(tb testing.TB) []string {
	tb.Helper()
	files, err := filepath.Glob(filepath.Join(recordedData(tb), "events", "*.jsonl.gz"))
	if err != nil || len(files) == 0 {
		tb.Fatalf("no recorded events: %v", err)
	}
	return files
}

// totals are the figures of the expectation files.
type totals struct {
	Alerts              int            `json:"alerts"`
	AlertsByCriticality map[string]int `json:"alerts_by_criticality"`
	BySignature         map[string]int `json:"by_signature"`
	Events              int            `json:"events"`
	Filtered            int            `json:"filtered"`
	OnlyFiltered        int            `json:"only_filtered"`
	SignatureHits       int            `json:"signature_hits"`
}

func (t *totals) add(d Detection) {
	t.Events++
	if d.Filtered {
		t.Filtered++
		if !d.Alert() {
			t.OnlyFiltered++
		}
	}
	if !d.Alert() {
		return
	}
	t.Alerts++
	t.AlertsByCriticality[strconv.Itoa(d.Criticality)]++
	for _, name := range d.Signatures {
		t.BySignature[name]++
		t.SignatureHits++
	}
}

var recordedSets = []struct {
	name   string
	rules  []string
	expect string
}{
	{"v2 and sigma", []string{"gene-rules-v2.gen", "sigma-converted-v2.gen"}, "expected-detections.json"},
	{"v2", []string{"gene-rules-v2.gen"}, "expected-detections-gene-rules-only.json"},
	{"v1", []string{"gene-rules-v1.gen"}, "expected-detections-v1-rules.json"},
	{"v1 migrated", []string{"gene-rules-v1-migrated.gen"}, "expected-detections-v1-rules.json"},
}

func TestRecordedTotals(t *testing.T) {
	for _, tc := range recordedSets {
		t.Run(tc.name, func(t *testing.T) {
			b, err := os.ReadFile(filepath.Join(recordedData(t), tc.expect))
			if err != nil {
				t.Fatal(err)
			}
			var want map[string]totals
			if err := json.Unmarshal(b, &want); err != nil {
				t.Fatal(err)
			}
			list := recordedRules(t, tc.rules...)
			set := mustCompile(t, list, nil)
			if set.Count() != len(list) {
				t.Errorf("%d rules compiled of %d", set.Count(), len(list))
			}
			if n := len(set.Waiting()); n != 5 {
				t.Errorf("%d rules wait for a container, want 5", n)
			}
			w := set.NewWorker()
			for _, file := range recordedEventFiles(t) {
				got := totals{AlertsByCriticality: map[string]int{}, BySignature: map[string]int{}}
				for _, line := range recordedEvents(t, file) {
					got.add(w.Detect(line))
				}
				name := filepath.Base(file)
				expected, ok := want[name]
				if !ok {
					t.Errorf("%s: nothing is expected of it", name)
				}
				g, _ := json.Marshal(got)
				e, _ := json.Marshal(expected)
				if string(g) != string(e) {
					t.Errorf("%s:\n got %s\nwant %s", name, g, e)
				}
			}
		})
	}
}

// TestRecordedAgainstGene compares whole detections event by event, every event
// of the small files and a sample of the large ones.
func TestRecordedAgainstGene(t *testing.T) {
	containers := map[string][]string{
		"blacklist": {"A6177D080759CF4A03EF837A38F62401", "www.malware.com", "example.org"},
		"whitelist": {"a6177d080759cf4a03ef837a38f62401"},
		"misp":      {"windowsupdate.com", "microsoft.com"},
	}
	list := recordedRules(t, "gene-rules-v2.gen", "sigma-converted-v2.gen")
	set := mustCompile(t, list, containers)
	reference := newPlain(t, list, containers)
	w := set.NewWorker()
	compared, alerts := 0, 0
	for _, file := range recordedEventFiles(t) {
		lines := recordedEvents(t, file)
		step := 1 + len(lines)/2000
		for i := 0; i < len(lines); i += step {
			got, want := outline(w.Detect(lines[i])), outline(reference.detect(lines[i]))
			if got != want {
				t.Fatalf("%s line %d:\n got %s\nwant %s\n%s", file, i+1, got, want, lines[i])
			}
			compared++
			if !strings.HasPrefix(want, "[] ") {
				alerts++
			}
		}
	}
	if alerts == 0 || compared < 1000 {
		t.Errorf("compared %d events with %d alerts: too few to mean anything", compared, alerts)
	}
}
