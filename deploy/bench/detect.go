package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// detectPackage is where the detector's own benchmarks are.
const detectPackage = "./services/rule-engine/internal/detect"

// detectGoals are the goals of times gene for sets of recorded rules.
var detectGoals = map[string]struct {
	rules string
	times float64
}{
	"v2_and_sigma": {"1,767 rules", 20},
	"v2":           {"109 rules", 6},
}

// detect runs the detector's benchmark: one worker beside plain gene, decoding
// included. Without recorded data it has synthetic rules and no goal.
func (b *bench) detect(ctx context.Context) error {
	args := []string{"test", "-run", "^$", "-benchtime", either(b.short, "50ms", "1s"), "-bench"}
	if os.Getenv("NIGHTJAR_TESTDATA") != "" {
		args = append(args, "^BenchmarkDetectRecorded$", "-tags", "recorded")
	} else {
		args = append(args, "^BenchmarkDetect$")
	}
	cmd := exec.CommandContext(ctx, "go", append(args, detectPackage)...)
	cmd.Dir = b.root
	text, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("run the detector's benchmark: %w\n%s", err, text)
	}
	found := false
	for line := range bytes.Lines(text) {
		f, ok := detectFigure(string(line))
		if !ok {
			continue
		}
		b.add(f)
		found = true
	}
	if !found {
		return errors.New("the detector's benchmark printed no figure")
	}
	return nil
}

// detectFigure reads a line of the output of go test.
func detectFigure(line string) (figure, bool) {
	fields := strings.Fields(line)
	if len(fields) < 2 || !strings.HasPrefix(fields[0], "Benchmark") {
		return figure{}, false
	}
	values := map[string]float64{}
	for i := 2; i+1 < len(fields); i += 2 {
		if v, err := strconv.ParseFloat(fields[i], 64); err == nil {
			values[fields[i+1]] = v
		}
	}
	rate, times := values["events/s"], values["x-plain"]
	if rate == 0 || times == 0 {
		return figure{}, false
	}
	_, of, _ := strings.Cut(fields[0], "/")
	if i := strings.LastIndexByte(of, '-'); i >= 0 {
		of = of[:i] // the number of processors
	}
	f := figure{section: "detect", name: of, unit: "times gene", value: times,
		baseline: 1, against: fmt.Sprintf("gene %s events/s, here %s", short(rate/times), short(rate))}
	set, file, _ := strings.Cut(of, "/")
	if g, ok := detectGoals[set]; ok {
		f.name, f.bound, f.goal = g.rules+" on "+file, atLeast, g.times
	}
	return f, true
}
