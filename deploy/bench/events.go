package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/nightjar-edr/nightjar/pkg/samples"
)

// timeLayout is how Windows writes the time of an event: 100 ns at best.
const timeLayout = "2006-01-02T15:04:05.0000000Z"

// tick is the smallest distance of two times of timeLayout.
const tick = 100 * time.Nanosecond

// template is an event whose time is to be filled in.
type template struct{ head, tail []byte }

// mix is a sequence of events, repeated without end. Every repetition has
// times of its own, so no two events of an endpoint are the same.
type mix struct {
	name      string
	templates []template
	// vary makes identifiers and numbers of each event its own, for events
	// that are few and would compress too well.
	vary bool
}

var timeKey = []byte(`"SystemTime":"`)

func newTemplate(line []byte) (template, bool) {
	i := bytes.Index(line, timeKey)
	if i < 0 {
		return template{}, false
	}
	i += len(timeKey)
	n := bytes.IndexByte(line[i:], '"')
	if n < 0 {
		return template{}, false
	}
	return template{bytes.Clone(line[:i]), bytes.Clone(line[i+n:])}, true
}

// Thinning of the recordings: one kind of event makes four fifths of one of
// them, which no fleet sends.
const (
	thinned   = `"EventID":"4663"`
	thinTo    = 13
	maxRecord = 64 << 10
)

// recordings are the recorded events, busyHost the longest of them: what one
// host had to say, and what the limits of NATS, Badger and gene were measured
// with, and the goals set by.
var recordings = []string{"evtx-attack-samples", "gene-rules-tests", "whids-agent-events", "python-evtx-tests", "sysmonente-trace", busyHost}

const busyHost = "gene-engine-bench"

// recordedMix returns the events of recordings below dir, one recording after
// the other.
func recordedMix(name, dir string, files ...string) (*mix, error) {
	m := &mix{name: name}
	n := 0
	for _, file := range files {
		err := eachLine(filepath.Join(dir, "data", "events", file+".jsonl.gz"), func(line []byte) {
			if len(line) > maxRecord {
				return
			}
			if bytes.Contains(line, []byte(thinned)) {
				if n++; n%thinTo != 0 {
					return
				}
			}
			if t, ok := newTemplate(line); ok {
				m.templates = append(m.templates, t)
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return m, nil
}

// shuffle has the recordings come at once, as from a fleet, in runs of events
// that followed each other.
func (m *mix) shuffle() {
	r := rand.New(rand.NewPCG(1, 2))
	const run = 20
	var runs [][]template
	for i := 0; i < len(m.templates); i += run {
		runs = append(runs, m.templates[i:min(i+run, len(m.templates))])
	}
	r.Shuffle(len(runs), func(i, j int) { runs[i], runs[j] = runs[j], runs[i] })
	m.templates = slices.Concat(runs...)
}

func eachLine(path string, each func(line []byte)) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("recorded events: %w", err)
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		return fmt.Errorf("recorded events %s: %w", path, err)
	}
	lines := bufio.NewScanner(z)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		each(lines.Bytes())
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("recorded events %s: %w", path, err)
	}
	return nil
}

// alertEvery is how many events come to one that raises an alert in the
// generated mix.
const alertEvery = 20

// sampleMix makes the mix of the samples that the product ships.
func sampleMix() *mix {
	m := &mix{name: "events generated from pkg/samples", vary: true}
	var quiet, loud []template
	for _, e := range samples.Endpoints() {
		alerts := map[int]bool{}
		for _, x := range e.Expected {
			alerts[x.Line] = true
		}
		for i, line := range e.Lines {
			t, ok := newTemplate(line)
			switch {
			case !ok:
			case alerts[i]:
				loud = append(loud, t)
			default:
				quiet = append(quiet, t)
			}
		}
	}
	for i := range len(loud) * alertEvery {
		t := quiet[i%len(quiet)]
		if i%alertEvery == alertEvery-1 {
			t = loud[i/alertEvery]
		}
		m.templates = append(m.templates, t)
	}
	return m
}

// variedKeys are the members whose hexadecimal digits differ from event to
// event.
var variedKeys = []string{"ProcessGuid", "ParentProcessGuid", "LogonGuid", "ProcessId", "ParentProcessId", "EventRecordID", "Hashes", "SourcePort", "ProcessID", "ThreadID"}

// line appends event i of the mix with a time and a line end.
func (m *mix) line(dst []byte, i int, at time.Time) []byte {
	t := m.templates[i%len(m.templates)]
	start := len(dst)
	dst = append(dst, t.head...)
	dst = at.UTC().AppendFormat(dst, timeLayout)
	dst = append(dst, t.tail...)
	if m.vary {
		varyLine(dst[start:], rand.New(rand.NewPCG(uint64(i), uint64(at.UnixNano()))))
	}
	return append(dst, '\n')
}

func varyLine(line []byte, r *rand.Rand) {
	for _, key := range variedKeys {
		name := []byte(`"` + key + `":"`)
		at := bytes.Index(line, name)
		if at < 0 {
			continue
		}
		for j := at + len(name); j < len(line) && line[j] != '"'; j++ {
			switch c := line[j]; {
			case c >= '0' && c <= '9':
				line[j] = '0' + byte(r.IntN(10))
			case c >= 'a' && c <= 'f':
				line[j] = 'a' + byte(r.IntN(6))
			case c >= 'A' && c <= 'F' && (j == 0 || line[j-1] != '"') && strings.HasSuffix(key, "Guid"):
				line[j] = 'A' + byte(r.IntN(6))
			}
		}
	}
}

// body is a request body as an agent sends it, gzip.
type body struct {
	packed []byte
	events int
	raw    int
}

// plan says which bodies one endpoint sends.
type plan struct {
	first  int // of the mix
	events int
	batch  int
	begin  time.Time
	step   time.Duration
}

// bodies makes the bodies of several plans, on all cores.
func (m *mix) bodies(plans []plan) [][]body {
	out := make([][]body, len(plans))
	work := make(chan int)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			var raw []byte
			var packed bytes.Buffer
			z := gzip.NewWriter(&packed)
			for n := range work {
				p := plans[n]
				at := p.begin
				for done := 0; done < p.events; {
					raw = raw[:0]
					packed.Reset()
					z.Reset(&packed)
					b := body{events: min(p.batch, p.events-done)}
					for range b.events {
						raw = m.line(raw, p.first+done, at)
						done++
						at = at.Add(max(p.step, tick))
					}
					// Writing to memory does not fail.
					_, _ = z.Write(raw)
					_ = z.Close()
					b.raw, b.packed = len(raw), bytes.Clone(packed.Bytes())
					out[n] = append(out[n], b)
				}
			}
		})
	}
	for i := range plans {
		work <- i
	}
	close(work)
	wg.Wait()
	return out
}

// wantedRules is how many rules there are, generated beside the samples, where
// there are no recorded ones.
const wantedRules = 109

// writeRules writes the rules of a manager into dir and returns what they are.
func writeRules(testdata, dir string) (name string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if testdata != "" {
		text, err := os.ReadFile(filepath.Join(testdata, "data", "rules", "gene-rules-v2.gen"))
		if err != nil {
			return "", fmt.Errorf("recorded rules: %w", err)
		}
		return "the 109 gene-rules", os.WriteFile(filepath.Join(dir, "rules.gen"), text, 0o644)
	}
	if err := samples.WriteRules(dir); err != nil {
		return "", err
	}
	have, err := countRules(dir)
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	for i := have; i < wantedRules; i++ {
		b.Write(generatedRule(i))
	}
	return fmt.Sprintf("%d rules of pkg/samples and %d generated ones", have, wantedRules-have), os.WriteFile(filepath.Join(dir, "generated.gen"), b.Bytes(), 0o644)
}

func countRules(dir string) (int, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.gen"))
	if err != nil {
		return 0, err
	}
	n := 0
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return 0, err
		}
		d := json.NewDecoder(bytes.NewReader(text))
		for d.More() {
			var rule json.RawMessage
			if err := d.Decode(&rule); err != nil {
				return 0, errors.Join(fmt.Errorf("count the rules of %s", f), err)
			}
			n++
		}
	}
	return n, nil
}

// generatedRule makes a rule that never matches and costs what a usual one
// does: three regular expressions on the kinds of events that come most.
func generatedRule(i int) []byte {
	ids := []int{1, 3, 7, 10, 11, 13}
	rule := map[string]any{
		"Name": fmt.Sprintf("Generated%03d", i),
		"Meta": map[string]any{"Events": map[string][]int{"Microsoft-Windows-Sysmon/Operational": {ids[i%len(ids)]}}, "Criticality": 1 + i%9, "Schema": "2.0.0"},
		"Matches": []string{
			fmt.Sprintf(`$a: Image ~= '(?i:\\implant%03d\.exe)$'`, i),
			fmt.Sprintf(`$b: CommandLine ~= '(?i:-stage[0-9]+ %03d)'`, i),
			fmt.Sprintf(`$c: TargetObject ~= '(?i:\\Run\\Implant%03d)'`, i),
		},
		"Condition": "$a or $b or $c",
	}
	// Strings and numbers always encode.
	text, _ := json.Marshal(rule)
	return append(text, '\n')
}
