//go:build recorded

package e2e

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"strings"
	"testing"
)

// TestRecordedHistory imports real events out of a log that breaks off in
// every third member, as a manager that is killed again and again leaves it.
func TestRecordedHistory(t *testing.T) {
	packed, err := os.ReadFile(recorded(t, "events", "evtx-attack-samples.jsonl.gz"))
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Split(strings.TrimSpace(string(text)), "\n")
	o := newOldManager(t)
	var log [][]byte
	var want []string
	rows := map[string]int{"log files read": 1}
	for n := 0; len(all) > 0; n++ {
		lines := all[:min(50, len(all))]
		all = all[len(lines):]
		m := zipped(t, lines...)
		if n%3 == 0 {
			// Right behind the last but one line: without the end of the
			// deflate stream, the checksum and the length.
			lines = lines[:len(lines)-1]
			m = m[:len(zipped(t, lines...))-5-4-4]
			rows["damaged parts"]++
			rows["lines recovered"] += len(lines)
		}
		log, want = append(log, m), append(want, lines...)
	}
	rows["events"] = len(want)
	o.put("logs/"+whidsEndpoints[0].UUID+"/2026-03-04/logs.gz", log...)
	p := start(t, t.TempDir(), "--import-whids", o.file)
	for _, what := range []string{"first", "again"} {
		o.importTo(p).shows(t, what, 0, rows)
		p.stands(whidsEndpoints[0], "logs", want...)
	}
}
