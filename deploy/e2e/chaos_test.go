//go:build chaos

package e2e

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/failpoint"
)

func init() { buildFlags = []string{"-tags", "failpoint"} }

var (
	chaosTime = flag.Duration("chaos.time", time.Minute, "how long the manager is killed and started again")
	chaosAll  = flag.Bool("chaos.all", false, "demand that each failpoint has ended the manager, however long that takes; without it each must have been passed")
)

// chaosPatience is how long a failpoint that is armed is waited for.
const chaosPatience = 20 * time.Second

// crashes is a manager that is killed again and again under load.
type crashes struct {
	chaos
	dir string
	// noted are the failpoints that were passed.
	noted map[string]bool
	kills int
}

// launch starts the manager with failpoints armed. It returns false when it
// ended before it could answer.
func (c *crashes) launch(points ...string) (*proc, bool) {
	c.t.Helper()
	p := &proc{t: c.t, dir: c.dir, args: []string{"--tls", "off", "--drop-dir", c.drops, "--merge-after", "50ms", "--command-history", "100000"}, env: []string{"NIGHTJAR_FAILPOINTS=" + strings.Join(points, ",")}}
	if c.now.Load() == nil {
		c.now.Store(p)
		c.t.Cleanup(func() { // of the last one
			last := c.now.Load()
			_ = last.cmd.Process.Kill()
			<-last.exited
			if log := last.log(); c.t.Failed() {
				c.t.Logf("log of the last manager:\n%s", log[max(0, len(log)-8000):])
			}
		})
	}
	err := p.launch()
	if p.exited == nil {
		c.t.Fatal(err)
	}
	if err == nil {
		c.now.Store(p)
	} else if !p.failed() {
		c.t.Fatal(err)
	}
	return p, err == nil
}

// failed tells whether a failpoint ended the process.
func (p *proc) failed() bool {
	return strings.Contains(p.log(), ": kill") && strings.Contains(p.log(), "failpoint ")
}

// killed demands that the process ends by SIGKILL.
func (c *crashes) killed(p *proc) {
	c.t.Helper()
	<-p.exited
	c.note(p)
	c.kills++
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || status.Signal() != syscall.SIGKILL {
		log := p.log()
		c.t.Fatalf("the manager ended by itself: %v\n%s", p.exit, log[max(0, len(log)-8000):])
	}
}

// note reads from its log which failpoints a process has passed.
func (c *crashes) note(p *proc) {
	log := p.log()
	for _, line := range strings.Split(log, "\n") {
		if rest, ok := strings.CutPrefix(line, "failpoint "); ok {
			name, _, _ := strings.Cut(rest, ": ")
			c.noted[name] = true
		}
	}
	for _, bad := range []string{"panic", "permissions violation", "stands still", "DATA RACE"} {
		if i := strings.Index(strings.ToLower(log), strings.ToLower(bad)); i >= 0 {
			c.t.Errorf("the log has %q: %.2000s", bad, log[max(0, i-500):])
		}
	}
}

// notes arms all failpoints that were not passed yet to say so.
func (c *crashes) notes(but ...string) []string {
	var armed []string
	for _, name := range failpoint.List() {
		if !c.noted[name] && !slices.Contains(but, name) {
			armed = append(armed, name+"=note")
		}
	}
	return armed
}

// awaitReady waits until the manager is ready or has ended.
func (c *crashes) awaitReady(p *proc) {
	c.t.Helper()
	for end := time.Now().Add(2 * deadline); ; time.Sleep(20 * time.Millisecond) {
		select {
		case <-p.exited:
			return
		default:
		}
		err := p.ready()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			c.t.Fatalf("not ready: %v; %s", err, dump(p))
		}
	}
}

// dump ends a manager with SIGQUIT, on which Go prints what each goroutine does,
// and names a file with its whole log, which stays.
func dump(p *proc) string {
	if err := p.cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		return err.Error()
	}
	<-p.exited
	f, err := os.CreateTemp("", "nightjar-log-")
	if err != nil {
		return err.Error()
	}
	if _, err := f.WriteString(p.log()); err != nil {
		return err.Error()
	}
	if err := f.Close(); err != nil {
		return err.Error()
	}
	return "what it did is at the end of " + f.Name()
}

// at starts the manager, has it killed at a failpoint, and tells whether it
// came there.
func (c *crashes) at(r *rand.Rand, name string) bool {
	c.t.Helper()
	if strings.HasSuffix(name, ":access") {
		// Operators do not change, so the view is built anew.
		if err := os.RemoveAll(filepath.Join(c.dir, "api-gateway")); err != nil {
			c.t.Fatal(err)
		}
	}
	hit := 1
	for _, often := range []string{"view/", "api-gateway/events", "rule-engine/alerts", "api-gateway/file", "api-gateway/artifact-mid"} {
		if strings.HasPrefix(name, often) && !strings.HasSuffix(name, ":access") {
			hit = 1 + r.IntN(3)
		}
	}
	p, up := c.launch(append(c.notes(name), fmt.Sprintf("%s=kill@%d", name, hit))...)
	if up && strings.HasPrefix(name, "standalone/stop") {
		c.awaitReady(p)
		time.Sleep(time.Duration(r.IntN(500)) * time.Millisecond)
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
	}
	select {
	case <-p.exited:
	case <-time.After(chaosPatience):
		_ = p.cmd.Process.Kill()
		c.killed(p)
		return false
	}
	c.killed(p)
	return c.noted[name]
}

// some starts the manager and ends it at a random moment, mostly by SIGKILL,
// with some places slowed down so that others overtake them.
func (c *crashes) some(r *rand.Rand) {
	c.t.Helper()
	var armed []string
	list := failpoint.List()
	for range r.IntN(4) {
		armed = append(armed, fmt.Sprintf("%s=sleep(%dms)@%d", list[r.IntN(len(list))], 1+r.IntN(200), 1+r.IntN(5)))
	}
	p, up := c.launch(armed...)
	if !up {
		c.t.Fatal("the manager does not start")
	}
	if r.IntN(3) > 0 {
		c.awaitReady(p)
	}
	time.Sleep(time.Duration(r.IntN(1500)) * time.Millisecond)
	if r.IntN(4) > 0 {
		_ = p.cmd.Process.Kill()
		c.killed(p)
		return
	}
	c.stop(p)
}

// stop ends the manager by SIGTERM, which must succeed.
func (c *crashes) stop(p *proc) {
	c.t.Helper()
	p.terminate()
	c.note(p)
}

// TestChaos kills the manager at every failpoint and at random moments, while
// clients work with it as they do, and then holds what it has against what
// was acknowledged.
func TestChaos(t *testing.T) {
	c := &crashes{dir: t.TempDir(), noted: map[string]bool{}}
	c.stuck = dump
	c.begin(t)
	r := c.rand(0)
	p, up := c.launch(c.notes()...)
	if !up {
		t.Fatal("the manager does not start")
	}
	c.awaitReady(p)
	w := c.work()
	_ = p.cmd.Process.Kill()
	c.killed(p)

	left := failpoint.List()
	r.Shuffle(len(left), func(i, j int) { left[i], left[j] = left[j], left[i] })
	points := len(left)
	began := time.Now()
	tries := map[string]int{}
	for i := 0; time.Since(began) < *chaosTime || *chaosAll && len(left) > 0; i++ {
		if t.Failed() {
			break
		}
		if len(left) == 0 || i%6 == 5 {
			c.some(r)
			continue
		}
		name := left[0]
		left = left[1:]
		if !c.at(r, name) {
			if tries[name]++; tries[name] == 4 {
				t.Errorf("failpoint %s was armed %d times and not passed", name, tries[name])
				break
			}
			left = append(left, name)
		}
	}
	// Places that a short run has not come to are at least passed.
	if p, up = c.launch(c.notes()...); !up {
		t.Fatal("the manager does not start")
	}
	c.awaitReady(p)
	wait(t, "every failpoint is passed", func() error {
		c.note(p)
		for _, s := range c.notes() {
			if name := strings.TrimSuffix(s, "=note"); !strings.HasPrefix(name, "standalone/stop") && !strings.HasSuffix(name, ":access") {
				return errors.New(name + " is not")
			}
		}
		return nil
	})
	c.ending.Store(true)
	c.load.Wait()
	if t.Failed() {
		return
	}
	t.Logf("%d kills, at %d of %d failpoints, in %s: %s", c.kills, points-len(left), points, time.Since(began).Round(time.Second), w)
	c.verify(w)
	for _, s := range c.notes() {
		t.Errorf("failpoint %s was never passed", strings.TrimSuffix(s, "=note"))
	}
}

// verify holds the manager against what was acknowledged: as it runs, after
// another crash, and with every store built anew.
func (c *crashes) verify(w *workload) {
	c.t.Helper()
	p := c.now.Load()
	c.settled(p, w)
	for _, d := range w.desks {
		d.verify(&c.chaos, p)
		if *chaosAll {
			d.expired(&c.chaos, p)
		}
	}
	if c.t.Failed() {
		return
	}
	all := w.all()
	before, err := p.snapshot(all...)
	if err != nil {
		c.t.Fatal(err)
	}
	restart := func(remove ...string) *proc {
		armed := c.notes()
		c.now.Load().dir = c.dir
		for _, store := range remove {
			c.now.Load().remove(store)
		}
		p, up := c.launch(armed...)
		if !up {
			c.t.Fatal("the manager does not start")
		}
		c.awaitReady(p)
		return p
	}
	_ = p.cmd.Process.Kill()
	c.killed(p)
	p = restart()
	p.shows("after another crash", before, all...)
	c.stop(p)
	p = restart("report-scorer")
	p.shows("with reports computed anew", before, all...)
	c.stop(p)
	p = restart(stores...)
	p.shows("with every store built anew", before, all...)
	c.settled(p, w)
	c.siem(p, w)
	c.deadLetters(p, w)
	c.stop(p)
}

// deadLetters demands a dead letter for each line that is no event, and none
// for anything else.
func (c *crashes) deadLetters(p *proc, w *workload) {
	c.t.Helper()
	s, err := p.asBackup().Stream(c.t.Context(), "DEADLETTER")
	if err != nil {
		c.t.Fatal(err)
	}
	letters, again := map[string]bool{}, 0
	for seq := s.CachedInfo().State.FirstSeq; seq <= s.CachedInfo().State.LastSeq; seq++ {
		m, err := s.GetMsg(c.t.Context(), seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue // a removal took it; all of others are asked for below
		} else if err != nil {
			c.t.Fatal(err)
		}
		if m.Header.Get("Nightjar-Endpoint") == w.removals.agent.e.UUID {
			continue // those behind its last removal
		}
		id := m.Header.Get("Nightjar-Endpoint") + " " + string(m.Data)
		if letters[id] {
			again++ // a batch that was sent again after the stream's window
		}
		letters[id] = true
	}
	want := 0
	for _, a := range append([]*chaosAgent{w.clears.agent}, w.agents...) {
		if a == w.history.chaosAgent {
			continue // its lines were left out
		}
		for line := range a.refused {
			want++
			if !letters[a.e.UUID+" "+line] {
				c.t.Errorf("no dead letter for %q of %s", line, a.e.UUID)
			}
		}
	}
	if len(letters) != want {
		c.t.Errorf("%d dead letters, want %d", len(letters), want)
	}
	c.t.Logf("%d dead letters, %d more than once", len(letters), again)
}

// expired waits until commands that never came have ended by themselves.
func (d *chaosDesk) expired(c *chaos, p *proc) {
	end := time.Now().Add(2 * time.Minute)
	for {
		var list []struct{ UUID, State, Error string }
		if err := json.Unmarshal(p.data(http.MethodGet, "/endpoints/"+d.e.UUID+"/commands?limit=100000", ""), &list); err != nil {
			c.t.Fatal(err)
		}
		sent := 0
		for _, l := range list {
			switch {
			case l.State == "sent":
				sent++
			case l.State == "expired" && !strings.Contains(l.Error, "delivered at"):
				c.t.Errorf("command %s expired with error %q", l.UUID, l.Error)
			}
		}
		if sent == 0 {
			return
		}
		if time.Now().After(end) {
			c.t.Errorf("%d commands are still sent and unanswered", sent)
			return
		}
		time.Sleep(time.Second)
	}
}
