package history

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// counts is what an import has done and not done.
type counts struct {
	lines     lineCount
	logs      int
	logBytes  int64
	older     int64
	damaged   int64
	skipped   int64
	torn      int64
	long      int64
	dumps     int64
	dumpBytes int64
	identical int64
	conflicts int64
	refused   int64

	unknown      map[string]bool
	unknownFiles int
	other        int
	unreadable   int
}

// lineCount counts lines that the manager has stored, or had stored before.
type lineCount struct {
	events, alerts, dead int64
	// unchecked are those of them that stand in damaged members.
	unchecked int64
}

func (c *lineCount) add(more lineCount) {
	c.events += more.events
	c.alerts += more.alerts
	c.dead += more.dead
	c.unchecked += more.unchecked
}

// write writes the table.
func (c *counts) write(w io.Writer, since bool) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name string, n any, note string, args ...any) {
		fmt.Fprintf(t, "%s\t%d\t%s\n", name, n, fmt.Sprintf(note, args...))
	}
	row("log files read", c.logs, "%s", bytesOf(c.logBytes))
	row("events", c.lines.events, "of logs, stored now or before")
	row("alerts", c.lines.alerts, "of alert files, each stored once with its event")
	row("not JSON", c.lines.dead, "lines that are no event, kept as dead letters")
	if since {
		row("older than --since", c.older, "lines left out")
	}
	row("damaged parts", c.damaged, "%d bytes skipped", c.skipped)
	row("  lines recovered", c.lines.unchecked, "of those above, from members whose checksum is not there")
	row("  lines torn", c.torn, "cut off by damage, not imported")
	row("lines too long", c.long, "not imported")
	row("dumps imported", c.dumps, "%s", bytesOf(c.dumpBytes))
	row("dumps identical", c.identical, "were there before")
	row("dumps in conflict", c.conflicts, "another file of that name is there, not imported")
	row("dumps refused", c.refused, "no place or name that the manager takes, not imported")
	row("unknown endpoints", len(c.unknown), "%d files not imported", c.unknownFiles)
	row("passed over", c.other, "files of no endpoint")
	row("not readable", c.unreadable, "files")
	_ = t.Flush() // as with any other output of a command
}

// bytesOf writes a number of bytes for people.
func bytesOf(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d bytes", n)
	}
	f, unit := float64(n)/(1<<10), "KiB"
	for _, larger := range []string{"MiB", "GiB", "TiB"} {
		if f < 1<<10 {
			break
		}
		f, unit = f/(1<<10), larger
	}
	return fmt.Sprintf("%.1f %s", f, unit)
}
