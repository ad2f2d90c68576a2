// Command bench measures a whole manager: a standalone process under the load
// of this one, with every acknowledgement on stable storage and detection on.
// It prints each figure beside its goal and beside what a plain program needs
// for the same, measured in the same run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// sections are what can be measured, in the order they run in.
var sections = []struct {
	name string
	run  func(*bench, context.Context) error
}{
	{"detect", (*bench).detect},
	{"ingest", (*bench).ingest},
	{"single", (*bench).single},
	{"latency", (*bench).latency},
	{"query", (*bench).query},
	{"fleet", (*bench).fleet},
	{"idle", (*bench).idle},
}

// bench is a run.
type bench struct {
	out io.Writer
	// dir is where everything is kept that the run writes.
	dir, binary, root string
	short             bool
	scale             float64
	// mix is what endpoints send, all every recording, with more alerts; nil
	// without recordings.
	mix, all    *mix
	rules       string
	rulesName   string
	figures     []figure
	notes       []string
	profile     string
	loadAverage string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) (err error) {
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	names := make([]string, len(sections))
	for i, s := range sections {
		names[i] = s.name
	}
	which := fs.String("run", strings.Join(names, ","), "sections to run, comma-separated")
	short := fs.Bool("short", false, "run everything small, to see that it runs")
	scale := fs.Float64("scale", 1, "how much of the full size to run")
	into := fs.String("write", "", "file to write the figures to, as a page of documentation")
	plainly := fs.Bool(serveFlag, false, "be the plain server that the fleet is compared with")
	b := &bench{out: os.Stdout, loadAverage: loadAverage()}
	fs.StringVar(&b.root, "root", ".", "root of the source, where standalone is built and the detector's benchmark is")
	fs.StringVar(&b.profile, "profile", "", "folder for profiles of the manager under load, recorded by perf")
	fs.StringVar(&b.binary, "standalone", "", "program to measure; built from the source when not given")
	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	if *plainly {
		return servePlainly()
	}
	b.short, b.scale = *short, *scale
	for name := range strings.SplitSeq(*which, ",") {
		if !slices.Contains(names, name) {
			return fmt.Errorf("no section %q; there are %s", name, strings.Join(names, ", "))
		}
	}
	if b.dir, err = os.MkdirTemp("", "nightjar-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	if err := b.prepare(ctx); err != nil {
		return err
	}
	began := time.Now()
	for _, s := range sections {
		if !slices.Contains(strings.Split(*which, ","), s.name) {
			continue
		}
		if err := s.run(b, ctx); err != nil {
			return fmt.Errorf("section %s: %w", s.name, err)
		}
	}
	b.say("%d figures in %s", len(b.figures), time.Since(began).Round(time.Second))
	if *into != "" {
		return b.write(*into, args)
	}
	return nil
}

// prepare builds the program and reads events and rules.
func (b *bench) prepare(ctx context.Context) error {
	testdata := os.Getenv("NIGHTJAR_TESTDATA")
	var err error
	if b.profile != "" {
		if err := os.MkdirAll(b.profile, 0o755); err != nil {
			return err
		}
	}
	if b.binary == "" {
		b.binary = filepath.Join(b.dir, "standalone")
		build := exec.CommandContext(ctx, "go", "build", "-o", b.binary, "./services/standalone")
		build.Dir = b.root
		if text, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build standalone: %w\n%s", err, text)
		}
	}
	b.mix = sampleMix()
	if testdata != "" {
		if b.mix, err = recordedMix("the recording of a busy host", testdata, busyHost); err != nil {
			return err
		}
		if b.all, err = recordedMix("all recordings", testdata, recordings...); err != nil {
			return err
		}
		b.all.shuffle()
	}
	b.rules = filepath.Join(b.dir, "rules")
	if b.rulesName, err = writeRules(testdata, b.rules); err != nil {
		return err
	}
	b.say("%s (%d in a cycle), %s", b.mix.name, len(b.mix.templates), b.rulesName)
	return nil
}

// say writes a line for the person who waits and keeps it for the page.
func (b *bench) say(format string, a ...any) {
	line := fmt.Sprintf(format, a...)
	b.notes = append(b.notes, line)
	_, _ = fmt.Fprintln(b.out, line)
}

func (b *bench) add(f figure) {
	b.figures = append(b.figures, f)
	f.print(b.out)
}

// size chooses between the full size of something, scaled, and the short one,
// which is the least.
func (b *bench) size(full, short int) int {
	return either(b.short, short, max(short, int(b.scale*float64(full))/short*short))
}

// either is what a short run takes, or a whole one.
func either[T any](isShort bool, short, whole T) T {
	if isShort {
		return short
	}
	return whole
}

// start starts a manager on a folder of its own.
func (b *bench) start(ctx context.Context, name string, args ...string) (*manager, error) {
	return startManager(ctx, b.binary, filepath.Join(b.dir, name), append([]string{"--rules-dir", b.rules}, args...)...)
}
