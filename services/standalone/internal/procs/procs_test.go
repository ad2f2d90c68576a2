package procs

import (
	"context"
	"runtime"
	"testing"
	"time"
)

func TestWatch(t *testing.T) {
	var w watch
	see := func(n int, part float64, idle bool) {
		t.Helper()
		for range n {
			w.look(part)
		}
		if w.idle != idle {
			t.Errorf("after %d times %v: idle %v", n, part, w.idle)
		}
	}
	see(looks-1, 0.01, false)
	see(1, 0.06, false)
	see(looks-1, 0.01, false)
	see(1, 0.01, true)
	see(100, 0.09, true) // neither little nor much
	see(1, 2, false)
	see(looks-1, 0, false)
	see(1, 0, true)
}

// An idle process has one processor, a busy one what it had, and so has one that
// is not watched any more.
func TestRun(t *testing.T) {
	const most = 3
	t.Setenv("GOMAXPROCS", "3")
	before := runtime.GOMAXPROCS(most)
	defer runtime.GOMAXPROCS(before)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); run(ctx, 20*time.Millisecond) }()
	until := func(what string, procs int, work bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); runtime.GOMAXPROCS(0) != procs; {
			if time.Now().After(end) {
				t.Fatalf("%s: %d processors, want %d", what, runtime.GOMAXPROCS(0), procs)
			}
			if !work {
				time.Sleep(20 * time.Millisecond)
			}
		}
	}
	until("idle", 1, false)
	until("busy", most, true)
	until("idle again", 1, false)
	cancel()
	<-done
	if got := runtime.GOMAXPROCS(0); got != most {
		t.Errorf("%d processors at the end, want %d", got, most)
	}
}

// Without GOMAXPROCS in the environment the runtime decides again.
func TestRestoreDefault(t *testing.T) {
	t.Setenv("GOMAXPROCS", "")
	before := runtime.GOMAXPROCS(0)
	runtime.SetDefaultGOMAXPROCS()
	most := runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(most + 1)
	restore(most + 1)
	if got := runtime.GOMAXPROCS(0); got != most {
		t.Errorf("%d processors, want %d", got, most)
	}
	runtime.GOMAXPROCS(before)
}
