package history

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/config"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

// Command is the name of the subcommand.
const Command = "import-history"

const intro = `Imports the history of a WHIDS manager into a running Nightjar: the events and
alerts in its day files and the files in its dump folder. Endpoints must have
been taken over before, by a start of standalone with --import-whids.

It may be interrupted and repeated at any time: what is there is not stored
again. Damaged parts of files are passed over, named and counted.
Exit codes: 0 everything readable is imported, 1 not everything is: repeat it,
2 unusable flags.`

// Main runs the subcommand with its arguments until ctx ends and returns the
// exit code. The table of what was done goes to stdout, everything else to
// stderr.
func Main(ctx context.Context, args []string, stdout io.Writer, stderr *os.File) int {
	fail := func(code int, err error) int {
		fmt.Fprintf(stderr, "%s: %v\n", Command, err)
		return code
	}
	fs := config.NewFlagSet("standalone "+Command, intro, stdout)
	c := addFlags(fs)
	if err := config.Parse(fs, args); errors.Is(err, config.ErrHelp) {
		return lifecycle.ExitOK
	} else if err != nil {
		return fail(lifecycle.ExitUsage, err)
	}
	j, err := c.job()
	if err != nil {
		return fail(lifecycle.ExitUsage, err)
	}
	r := &run{job: j, part: wholeDump, progress: newProgress(stderr)}
	j.api.say = r.say
	err = r.all(ctx)
	r.progress.stop()
	r.count.write(stdout, !j.since.IsZero())
	const repeat = "what is imported stays; repeat the same command for the rest, nothing is stored twice"
	switch {
	case ctx.Err() != nil:
		return fail(lifecycle.ExitFailed, errors.New("interrupted; "+repeat))
	case err != nil:
		return fail(lifecycle.ExitFailed, fmt.Errorf("%w\n%s", err, repeat))
	case r.count.unreadable > 0:
		return fail(lifecycle.ExitFailed, errors.New("some files could not be read; "+repeat))
	}
	return lifecycle.ExitOK
}

// run is one import.
type run struct {
	*job
	// part is the size of the largest piece of a dump.
	part     int64
	count    counts
	progress *progress
}

// say tells the operator something at once.
func (r *run) say(format string, args ...any) { r.progress.say(fmt.Sprintf(format, args...)) }

// unreadable counts a file that cannot be read.
func (r *run) unreadable(path string, err error) {
	r.count.unreadable++
	r.say("%s: cannot be read: %v", path, withoutPath(err))
}

// all imports everything.
func (r *run) all(ctx context.Context) error {
	known := map[string]bool{}
	if err := list(ctx, r.api, "/endpoints", func(e struct{ UUID string }) { known[e.UUID] = true }); err != nil {
		return err
	}
	var logs, dumps []*found
	var other []string
	var err error
	if r.logs != "" {
		if logs, other, err = findLogs(r.logs); err != nil {
			return err
		}
		for _, path := range other {
			r.say("%s: passed over: it does not say whose events it holds", path)
		}
		r.count.other += len(other)
	}
	if r.dumps != "" {
		if dumps, other, err = findDumps(r.dumps); err != nil {
			return err
		}
		for _, path := range other {
			r.say("%s: passed over: not a folder of an endpoint's dumps", path)
		}
		r.count.other += len(other)
	}
	logs, dumps = r.only(known, logs, "log files"), r.only(known, dumps, "dumps")
	for _, f := range append(append([]*found(nil), logs...), dumps...) {
		for _, l := range f.files {
			r.progress.expect(l.size)
		}
	}
	r.progress.start(time.Now())
	for _, f := range logs {
		if err := r.importLogs(ctx, f); err != nil {
			return err
		}
	}
	for _, f := range dumps {
		if err := r.importDumps(ctx, f); err != nil {
			return err
		}
	}
	return nil
}

// only returns what is of endpoints that the manager knows, and counts the
// rest.
func (r *run) only(known map[string]bool, all []*found, what string) (list []*found) {
	for _, f := range all {
		if known[f.endpoint] {
			list = append(list, f)
			continue
		}
		if r.count.unknown == nil {
			r.count.unknown = map[string]bool{}
		}
		r.count.unknown[f.endpoint] = true
		r.count.unknownFiles += len(f.files)
		r.say("%s: the manager does not know this endpoint, its %d %s are not imported", f.endpoint, len(f.files), what)
	}
	return list
}
