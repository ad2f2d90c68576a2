// Package procs has a process that does next to nothing use one processor. Where
// the Go runtime may use more, it wakes a second thread whenever there is
// something to do, to see whether there is more. With little to do that is for
// nothing, each time.
package procs

import (
	"context"
	"os"
	"runtime"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/beat"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

const (
	// lookEvery is how often it is looked what the process uses, and so for how
	// long it may be kept on one processor when it has work for more.
	lookEvery = time.Second
	// A process is idle that used less than little of a processor each time in
	// looks looks, until it uses more than much.
	little = 0.05
	much   = 0.1
	looks  = 10
)

// Run sets GOMAXPROCS to 1 while the process is idle, and back when it is not, or
// ctx ends. It returns then, or at once where the system does not tell what a
// process uses.
func Run(ctx context.Context) { run(ctx, lookEvery) }

func run(ctx context.Context, every time.Duration) {
	most := runtime.GOMAXPROCS(0)
	last, ok := used()
	if !ok || most == 1 {
		return
	}
	var w watch
	at := time.Now()
	for lifecycle.Sleep(ctx, beat.Next(every)) == nil {
		total, _ := used()
		now, before := time.Now(), w.idle
		w.look(float64(total-last) / float64(now.Sub(at)))
		last, at = total, now
		switch {
		case w.idle && !before:
			runtime.GOMAXPROCS(1)
		case before && !w.idle:
			restore(most)
		}
	}
	if w.idle {
		restore(most)
	}
}

// restore sets GOMAXPROCS to what it was. The runtime follows a change of the
// container's limit again unless the environment sets it.
func restore(most int) {
	if os.Getenv("GOMAXPROCS") != "" {
		runtime.GOMAXPROCS(most)
	} else {
		runtime.SetDefaultGOMAXPROCS()
	}
}

// watch tells whether a process is idle.
type watch struct {
	idle  bool
	quiet int // looks in a row that saw little
}

// look takes what part of a processor was used since the last look.
func (w *watch) look(part float64) {
	switch {
	case part >= much:
		w.idle, w.quiet = false, 0
	case part >= little:
		w.quiet = 0
	default:
		w.quiet++
		w.idle = w.idle || w.quiet >= looks
	}
}
