package history

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// How often the state is shown on a terminal, where its line is written over,
// and elsewhere.
const (
	terminalInterval = 500 * time.Millisecond
	plainInterval    = 10 * time.Second
)

// progress tells how far an import is.
type progress struct {
	out      *os.File
	terminal bool
	finished chan struct{}
	ended    sync.WaitGroup

	mu            sync.Mutex
	files, all    int
	bytes, total  int64
	events, width int64
	began         time.Time
}

func newProgress(out *os.File) *progress {
	p := &progress{out: out, finished: make(chan struct{})}
	if info, err := out.Stat(); err == nil {
		p.terminal = info.Mode()&os.ModeCharDevice != 0
	}
	return p
}

// expect adds a file to what is to be done.
func (p *progress) expect(size int64) {
	p.all++
	p.total += size
}

// start shows the state from now on.
func (p *progress) start(now time.Time) {
	p.began = now
	interval := plainInterval
	if p.terminal {
		interval = terminalInterval
	}
	p.ended.Go(func() {
		t := time.NewTicker(interval)
		defer t.Stop()
		for {
			select {
			case <-p.finished:
				return
			case now := <-t.C:
				p.mu.Lock()
				p.show(p.state(now))
				p.mu.Unlock()
			}
		}
	})
}

// stop ends the showing.
func (p *progress) stop() {
	close(p.finished)
	p.ended.Wait()
	p.clear()
}

// read counts bytes of a file that are done with.
func (p *progress) read(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bytes += n
}

// done counts a file that is done with, and the bytes that are left of it.
func (p *progress) done(left int64) {
	p.read(left)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.files++
}

// lines counts lines that are stored.
func (p *progress) lines(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events += n
}

// say writes a line of its own.
func (p *progress) say(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	fmt.Fprintln(p.out, text)
}

func (p *progress) state(now time.Time) string {
	rate := float64(p.events) / max(now.Sub(p.began).Seconds(), 1)
	return fmt.Sprintf("%d of %d files, %s of %s, %d lines, %.0f/s", p.files, p.all, bytesOf(p.bytes), bytesOf(p.total), p.events, rate)
}

// show writes the state, on a terminal over the last one.
func (p *progress) show(state string) {
	if !p.terminal {
		fmt.Fprintln(p.out, state)
		return
	}
	p.clear()
	p.width = int64(len(state))
	fmt.Fprint(p.out, state)
}

// clear takes the state off a terminal.
func (p *progress) clear() {
	if p.width > 0 {
		fmt.Fprintf(p.out, "\r%s\r", strings.Repeat(" ", int(p.width)))
		p.width = 0
	}
}
