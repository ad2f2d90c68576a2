package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
)

// marker is where the measured part of the page begins. What stands before it
// is written by hand and stays.
const marker = "<!-- measured: everything below is written by make bench -->"

// write replaces the measured part of a page of documentation.
func (b *bench) write(path string, args []string) error {
	page, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("write the figures: %w", err)
	}
	head, _, found := bytes.Cut(page, []byte(marker))
	if !found {
		head = []byte("# Performance\n\n")
	}
	var out bytes.Buffer
	out.Write(head)
	fmt.Fprintf(&out, "%s\n\n## Measured\n\n", marker)
	fmt.Fprintf(&out, "%s, %d cores (%s), %s, %s; load when it began %s.\n\n", time.Now().UTC().Format(time.DateOnly), runtime.NumCPU(), cpuModel(),
		runtime.Version(), runtime.GOOS+"/"+runtime.GOARCH, b.loadAverage)
	fmt.Fprintf(&out, "    bench %s\n\n", strings.Join(args, " "))
	row := func(cells []string) { fmt.Fprintf(&out, "| %s |\n", strings.Join(cells, " | ")) }
	row(heads)
	fmt.Fprintf(&out, "|%s\n", strings.Repeat("---|", len(heads)))
	for i := range b.figures {
		row(b.figures[i].columns())
	}
	out.WriteString("\nWhat it said meanwhile:\n\n")
	for _, n := range b.notes {
		fmt.Fprintf(&out, "- %s\n", n)
	}
	if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write the figures: %w", err)
	}
	return nil
}

// cpuModel names the processor.
func cpuModel() string {
	text, _ := os.ReadFile("/proc/cpuinfo") // unknown then
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.TrimSpace(strings.TrimLeft(name, "\t :"))
		}
	}
	return "unknown model"
}

// loadAverage returns the load of the last minute: what else ran.
func loadAverage() string {
	text, _ := os.ReadFile("/proc/loadavg") // unknown then
	one, _, _ := strings.Cut(string(text), " ")
	return one
}
