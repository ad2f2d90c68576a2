//go:build powerloss

package e2e

import (
	"flag"
	"fmt"
	"os"
	"testing"
	"time"
)

// The guest has nothing but the program, so that must be linked statically.
// It is emulated, so everything takes longer.
func init() {
	if err := os.Setenv("CGO_ENABLED", "0"); err != nil {
		panic(err)
	}
	deadline = 3 * time.Minute
}

var (
	powerKernel = flag.String("powerloss.kernel", "", "folder with boot/vmlinuz-* and lib/modules, as in Debian's linux-image packages")
	powerCuts   = flag.Int("powerloss.cuts", 4, "how often the power is cut in mid load")
	powerSync   = flag.String("powerloss.sync", "always", "the manager's --sync; with 1h the test must fail")
)

// sent returns how many events were acknowledged or are being sent.
func (w *workload) sent() (n int) {
	for _, a := range w.agents {
		a.mu.Lock()
		n += len(a.kept)
		a.mu.Unlock()
	}
	return n
}

// TestPowerLoss cuts the power of a virtual machine, again and again while
// clients work with the manager in it, and then holds what is on its disk
// against what was acknowledged. Every other cut, some of what was written and
// not flushed is on the disk.
func TestPowerLoss(t *testing.T) {
	c := &chaos{}
	c.begin(t)
	c.timeout = 3600
	r := c.rand(0)
	m := newMachine(t, *powerKernel, *powerSync)
	cut := func() {
		keep := r
		if m.cuts%2 == 0 {
			keep = nil
		}
		m.cut(keep)
	}
	c.now.Store(m.on())
	w := c.work()
	began := time.Now()
	for i := range *powerCuts {
		before := w.sent()
		wait(t, "there is load", func() error {
			if n := w.sent() - before; n < 300 {
				return fmt.Errorf("%d events were sent", n)
			}
			return nil
		})
		// The load has no quiet moment, so any moment is in its middle.
		time.Sleep(time.Duration(r.IntN(5000)) * time.Millisecond)
		if i == *powerCuts-1 {
			c.ending.Store(true)
		}
		cut()
		if t.Failed() {
			break
		}
		c.now.Store(m.on())
	}
	c.ending.Store(true)
	c.load.Wait()
	if t.Failed() {
		return
	}
	t.Logf("%d cuts in %s: %s", m.cuts, time.Since(began).Round(time.Second), w)

	p := c.now.Load()
	c.settled(p, w)
	for _, d := range w.desks {
		d.verify(c, p)
	}
	if t.Failed() {
		return
	}
	all := w.all()
	before, err := p.snapshot(all...)
	if err != nil {
		t.Fatal(err)
	}
	for _, again := range []struct {
		when   string
		remove []string
	}{
		{"after another cut", nil},
		{"with reports computed anew", []string{"report-scorer"}},
		{"with every store built anew", stores},
	} {
		cut()
		p = m.on(again.remove...)
		p.shows(again.when, before, all...)
	}
	c.settled(p, w)
	c.siem(p, w)
	m.healthy()
}
