package detect

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// benchmark runs a worker over lines and reports events per second and the ratio
// to gene, which runs over a sample of the same lines for a moment.
func benchmark(b *testing.B, set *Set, reference *plain, lines [][]byte) {
	b.Helper()
	w := set.NewWorker()
	step := max(1, len(lines)/997)
	plainEvents, start := 0, time.Now()
	for i := 0; time.Since(start) < 500*time.Millisecond; i = (i + step) % len(lines) {
		reference.detect(lines[i])
		plainEvents++
	}
	plainRate := float64(plainEvents) / time.Since(start).Seconds()

	size := 0
	for _, line := range lines {
		size += len(line)
	}
	b.SetBytes(int64(size / len(lines)))
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		w.Detect(lines[i])
		if i++; i == len(lines) {
			i = 0
		}
	}
	rate := float64(b.N) / b.Elapsed().Seconds()
	b.ReportMetric(rate, "events/s")
	b.ReportMetric(rate/plainRate, "x-plain")
}

// syntheticRules makes rules like those that published sets have: a program and
// some words of its command line, most of them for process creation.
func syntheticRules(n int) string {
	var b strings.Builder
	for i := range n {
		matches := []string{
			fmt.Sprintf(`$image: Image ~= '(?i:\\(tool%d|helper%d|cmd)\.exe$)'`, i, i%7),
			fmt.Sprintf(`$words: CommandLine ~= '(?is:--flag%d|secret%d|-enc)'`, i, i%13),
			fmt.Sprintf(`$path: CommandLine ~= '(?i:c:\\users\\.*\\case%d\.(ps1|vbs))'`, i),
			`$system: User = 'NT AUTHORITY\SYSTEM'`,
			`$parent: ParentImage ~= '(?i:^c:\\windows\\(explorer|system32\\services)\.exe$)'`,
		}
		rule, _ := json.Marshal(map[string]any{
			"Name": fmt.Sprintf("Synthetic%d", i),
			"Meta": map[string]any{
				"Schema": "2.0.0", "Criticality": i % 11,
				"Events": map[string][]int{sysmon: {[]int{1, 1, 1, 11, 13}[i%5]}},
			},
			"Matches": matches, "Condition": "(($image and $words) or $path) and !($system or $parent)",
		})
		b.Write(rule)
	}
	return b.String()
}

func syntheticEvents(n int) [][]byte {
	var lines [][]byte
	for i := range n {
		fields := map[string]string{
			"Image":             fmt.Sprintf(`C:\Windows\System32\%s.exe`, []string{"svchost", "cmd", "conhost", "tool17"}[i%4]),
			"CommandLine":       fmt.Sprintf(`"C:\Program Files\Product\service%d.exe" --run --config C:\ProgramData\Product\%d.json`, i, i),
			"ParentImage":       `C:\Windows\System32\services.exe`,
			"ParentCommandLine": `C:\Windows\System32\services.exe`,
			"User":              `DESKTOP\user`,
			"Hashes":            fmt.Sprintf("MD5=%032X,SHA256=%064X", i, i*i),
			"UtcTime":           "2024-01-02 03:04:05.678",
			"ProcessGuid":       fmt.Sprintf("{%08x-0000-0000-0000-000000000000}", i),
		}
		for k, v := range fields {
			fields[k] = strings.ReplaceAll(v, `\\`, `\`)
		}
		line, _ := json.Marshal(map[string]any{"Event": map[string]any{
			"EventData": fields,
			"System": map[string]any{
				"Channel": sysmon, "Computer": "HOST1", "EventID": fmt.Sprint([]int{1, 11, 13, 3}[i%4]),
				"Provider": map[string]string{"Name": "Microsoft-Windows-Sysmon"}, "TimeCreated": map[string]string{"SystemTime": "2024-01-02T03:04:05.678Z"},
			},
		}})
		lines = append(lines, line)
	}
	return lines
}

// BenchmarkDetect measures one worker with synthetic rules and events, and how
// much faster than gene it is in the same run.
func BenchmarkDetect(b *testing.B) {
	lines := syntheticEvents(1000)
	for _, n := range []int{100, 1000} {
		b.Run(fmt.Sprintf("rules=%d", n), func(b *testing.B) {
			list := mustParse(b, syntheticRules(n))
			benchmark(b, mustCompile(b, list, nil), newPlain(b, list, nil), lines)
		})
	}
}

func BenchmarkCompile(b *testing.B) {
	list := mustParse(b, syntheticRules(1000))
	for b.Loop() {
		mustCompile(b, list, nil)
	}
}

// TestBenchmarkRules keeps the benchmark honest: gene agrees on its events, and
// some of them match.
func TestBenchmarkRules(t *testing.T) {
	list := mustParse(t, syntheticRules(60))
	set, reference := mustCompile(t, list, nil), newPlain(t, list, nil)
	w := set.NewWorker()
	for _, line := range append(syntheticEvents(50), eventLine(sysmon, 1, `"Image":"C:\\tool5.exe","CommandLine":"--FLAG5","User":"x","ParentImage":"y"`)) {
		if got, want := outline(w.Detect(line)), outline(reference.detect(line)); got != want {
			t.Errorf("%s\n got %s\nwant %s", line, got, want)
		}
	}
	if d := w.Detect(eventLine(sysmon, 1, `"Image":"C:\\tool5.exe","CommandLine":"--FLAG5","User":"x","ParentImage":"y"`)); len(d.Signatures) == 0 {
		t.Error("nothing matches")
	}
}
