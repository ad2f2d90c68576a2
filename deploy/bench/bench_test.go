package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
)

// Every event of a plan is a valid one with a time of its own, or the manager
// would take it for a repetition and the figures would flatter it.
func TestBodiesHoldDifferentEvents(t *testing.T) {
	m := sampleMix()
	begin := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	n := 3 * len(m.templates)
	seen := map[event.Hash]bool{}
	total := 0
	for _, b := range m.bodies([]plan{{events: n, batch: 7, begin: begin, step: time.Millisecond}})[0] {
		text, err := gunzip(b.packed)
		if err != nil {
			t.Fatal(err)
		}
		total += b.events
		if len(text) != b.raw || strings.Count(text, "\n") != b.events {
			t.Fatalf("a body of %d bytes and %d lines is told to have %d and %d", len(text), strings.Count(text, "\n"), b.raw, b.events)
		}
		for line := range strings.Lines(text) {
			info, err := event.Scan([]byte(strings.TrimSuffix(line, "\n")))
			if err != nil || !info.Timed() {
				t.Fatalf("no event with a time: %v: %s", err, line)
			}
			seen[event.HashOf([]byte(line))] = true
		}
	}
	if total != n || len(seen) != n {
		t.Errorf("%d events, %d different, want %d", total, len(seen), n)
	}
}

// Without recorded rules there are as many of similar shape.
func TestGeneratedRules(t *testing.T) {
	dir := t.TempDir()
	if _, err := writeRules("", dir); err != nil {
		t.Fatal(err)
	}
	if n, err := countRules(dir); err != nil || n != wantedRules {
		t.Errorf("%d rules, %v", n, err)
	}
	if !json.Valid(generatedRule(50)) {
		t.Error("a generated rule is no JSON")
	}
}

func TestShort(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.01234: "0.0123", 1.5: "1.50", 18: "18.0", 150.4: "150", 60000: "60,000", 1234567: "1,234,567", 999.96: "1,000"} {
		if got := short(v); got != want {
			t.Errorf("%v: %s, want %s", v, got, want)
		}
	}
}

// A figure meets its goal on the side that its bound says.
func TestMet(t *testing.T) {
	for _, tc := range []struct {
		value float64
		bound bound
		goal  float64
		want  string
	}{{1, atMost, 2, "yes"}, {3, atMost, 2, "NO"}, {3, atLeast, 2, "yes"}, {1, atLeast, 2, "NO"}, {1, atMost, 0, ""}} {
		f := figure{value: tc.value, bound: tc.bound, goal: tc.goal}
		if got := f.met(); got != tc.want {
			t.Errorf("%v %s %v: %q", tc.value, tc.bound, tc.goal, got)
		}
	}
}

func TestDetectFigure(t *testing.T) {
	const line = "BenchmarkDetectRecorded/v2/trace-a-2  13494  25563 ns/op  59.69 MB/s  39118 events/s  13.21 x-plain  2 B/op  0 allocs/op\n"
	f, ok := detectFigure(line)
	if !ok || f.value != 13.21 || f.goal != 6 || f.met() != "yes" || f.name != "109 rules on trace-a" || f.against != "gene 2,961 events/s, here 39,118" {
		t.Errorf("%+v %t", f, ok)
	}
	for _, other := range []string{"", "PASS", "goos: linux", "ok  \tpkg\t22.5s", "BenchmarkDetect/rules=100-2 1 25563 ns/op"} {
		if f, ok := detectFigure(other); ok {
			t.Errorf("%q gives %+v", other, f)
		}
	}
}
