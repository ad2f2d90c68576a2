package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// bound says on which side of its goal a figure should be.
type bound string

const (
	atMost  bound = "at most"
	atLeast bound = "at least"
)

// figure is one thing measured.
type figure struct {
	section, name, unit string
	value               float64
	bound               bound
	goal                float64 // 0 for none
	// baseline is the same of a plain program, 0 for none, and what it is.
	baseline float64
	against  string
}

func (f *figure) met() string {
	switch {
	case f.goal == 0:
		return ""
	case f.bound == atMost && f.value <= f.goal, f.bound == atLeast && f.value >= f.goal:
		return "yes"
	}
	return "NO"
}

// short writes a number with three digits that count.
func short(v float64) string {
	if v == 0 {
		return "0"
	}
	digits := max(0, 2-int(math.Floor(math.Log10(math.Abs(v)))))
	s := strconv.FormatFloat(v, 'f', digits, 64)
	whole, rest, _ := strings.Cut(s, ".")
	for i := len(whole) - 3; i > 0 && whole[i-1] != '-'; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	if rest != "" {
		return whole + "." + rest
	}
	return whole
}

// columns are a figure as a row of a table.
func (f *figure) columns() []string {
	c := []string{f.section, f.name, short(f.value) + " " + f.unit, "", f.met(), "", ""}
	if f.goal != 0 {
		c[3] = fmt.Sprintf("%s %s", f.bound, short(f.goal))
	}
	if f.baseline != 0 {
		c[5] = fmt.Sprintf("%s (%s)", short(f.baseline), f.against)
		c[6] = short(f.value / f.baseline)
	}
	return c
}

var heads = []string{"section", "figure", "measured", "goal", "met", "baseline", "ratio"}

// print writes a figure as a line for a person who waits.
func (f *figure) print(w io.Writer) {
	c := f.columns()
	line := fmt.Sprintf("%-8s %-46s %16s", c[0], c[1], c[2])
	if c[3] != "" {
		line += fmt.Sprintf("   goal %s: %s", c[3], c[4])
	}
	if c[5] != "" {
		line += fmt.Sprintf("   baseline %s, ratio %s", c[5], c[6])
	}
	_, _ = fmt.Fprintln(w, line)
}

// percentile returns the value below which a part of the times lies, in
// milliseconds. It sorts them.
func percentile(times []time.Duration, part float64) float64 {
	if len(times) == 0 {
		return 0
	}
	slices.Sort(times)
	i := min(len(times)-1, int(part*float64(len(times))))
	return float64(times[i]) / float64(time.Millisecond)
}
