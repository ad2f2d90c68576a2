package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// runCommand runs a command of standalone and returns what it printed and its exit
// code.
func runCommand(t *testing.T, args ...string) (string, int) {
	t.Helper()
	cmd := exec.Command(binary, args...)
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// mustRun runs a command of standalone and demands success.
func mustRun(t *testing.T, args ...string) string {
	t.Helper()
	out, code := runCommand(t, args...)
	if code != 0 {
		t.Fatalf("standalone %s: exit code %d\n%s", strings.Join(args, " "), code, out)
	}
	return out
}

// batch makes a batch of events, every tenth of them bad.
func batch(b, size int, base time.Time) (lines [][]byte) {
	for n := b * size; n < (b+1)*size; n++ {
		at := base.Add(time.Duration(n) * time.Second / 4)
		if n%10 == 3 {
			lines = append(lines, badEvent(n, at))
		} else {
			lines = append(lines, plainEvent(n, at))
		}
	}
	return lines
}

// backedUp is a house under load while it is backed up: agents send batches of
// events and an operator queues commands.
type backedUp struct {
	t      *testing.T
	agents []endpoint
	// latest was enrolled just before the backup.
	latest endpoint
	base   time.Time
	stop   chan struct{}
	work   sync.WaitGroup
	// sent are how many batches of each agent are acknowledged, before how
	// many were when the backup began.
	sent   []atomic.Int64
	before []int64
}

const backupBatch = 20

// loadForBackup starts the load and returns when some of it is acknowledged.
func loadForBackup(t *testing.T, p *proc) *backedUp {
	t.Helper()
	const agents, least, most = 3, 12, 60
	b := &backedUp{t: t, base: time.Now().Add(-time.Hour), stop: make(chan struct{}), sent: make([]atomic.Int64, agents)}
	p.data(http.MethodPost, "/rules", testRule)
	for range agents {
		b.agents = append(b.agents, p.enrol())
	}
	for a, e := range b.agents {
		b.work.Go(func() {
			for n := 0; n < most && !b.stopped(); n++ {
				if code, err := p.post(e, true, batch(n, backupBatch, b.base)...); err != nil || code != http.StatusOK {
					t.Errorf("POST /logs: %d %v", code, err)
					return
				}
				b.sent[a].Add(1)
			}
		})
	}
	// Keys of buckets are rewritten meanwhile, which a snapshot alone may miss.
	b.work.Go(func() {
		for !b.stopped() {
			for _, e := range b.agents {
				if _, err := p.ask(http.MethodPost, "/endpoints/"+e.UUID+"/command", `{"command-line":"whoami"}`); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	eventually(t, "load", func() error {
		for a := range b.sent {
			if n := b.sent[a].Load(); n < least {
				return fmt.Errorf("agent %d: %d batches", a, n)
			}
		}
		return nil
	})
	for a := range b.sent {
		b.before = append(b.before, b.sent[a].Load())
	}
	b.latest = p.enrol()
	return b
}

func (b *backedUp) stopped() bool {
	select {
	case <-b.stop:
		return true
	default:
		return false
	}
}

// end ends the load.
func (b *backedUp) end() {
	close(b.stop)
	b.work.Wait()
}

// verify holds the restored house against what had been acknowledged before the
// backup began. Agents then repeat everything with the keys they had, which
// adds only what the backup did not have. alerts reads ALERTS as the SIEM.
func (b *backedUp) verify(r *proc, alerts func() []jetstream.Msg) {
	t := b.t
	t.Helper()
	r.mustPost(b.latest, plainEvent(1, b.base))
	all := 0
	for a, e := range b.agents {
		var got int
		eventually(t, "events of before", func() error {
			if got = len(r.events(e, "logs"+everything)); got < int(b.before[a])*backupBatch {
				return fmt.Errorf("%d events, %d were acknowledged before the backup", got, b.before[a]*backupBatch)
			}
			return nil
		})
		total := int(b.sent[a].Load())
		if got%backupBatch != 0 || got > (total+1)*backupBatch {
			t.Errorf("%d events, %d batches of %d were sent", got, total, backupBatch)
		}
		// Alerts are copied behind the events, so there may be more.
		eventually(t, "alerts of before", func() error {
			if n := len(r.events(e, "alerts"+everything)); n < got/10 {
				return fmt.Errorf("%d alerts of %d events", n, got)
			}
			return nil
		})
		for n := range total {
			r.mustPost(e, batch(n, backupBatch, b.base)...)
		}
		eventually(t, "each event once", func() error {
			if n := len(r.events(e, "logs"+everything)); n != total*backupBatch {
				return fmt.Errorf("%d events, want %d", n, total*backupBatch)
			}
			if n := len(r.events(e, "alerts"+everything)); n != total*backupBatch/10 {
				return fmt.Errorf("%d alerts, want %d", n, total*backupBatch/10)
			}
			return nil
		})
		all += total * backupBatch / 10
	}
	eachOnce(t, all, alerts)
}

// TestBackupUnderLoad backs a manager up in the middle of a load, restores it
// elsewhere and holds the restored manager against what had been acknowledged
// before the backup began.
func TestBackupUnderLoad(t *testing.T) {
	// Without an address for NATS the backup finds the manager all the same.
	p := start(t, t.TempDir(), "--nats-addr", "off")
	load := loadForBackup(t, p)
	file := filepath.Join(t.TempDir(), "backup.tar")
	mustRun(t, "backup", "--data-dir", p.dir, "--to", file)
	load.end()
	if out, code := runCommand(t, "backup", "--data-dir", p.dir, "--to", file); code != 1 || !strings.Contains(out, "exist") {
		t.Errorf("a backup over another one: exit code %d, %s", code, out)
	}
	p.kill()

	dir := filepath.Join(t.TempDir(), "elsewhere")
	mustRun(t, "restore", "--from", file, "--data-dir", dir)
	r := start(t, dir)
	load.verify(r, r.alerts) // with the SIEM's key of before
}

// stable is what differs between two backups of the same: when endpoints were
// last seen is written at the end, and the last line tells the time.
var stable = regexp.MustCompile(`(?m)^KV_endpoints .*$|^.* holds what was acknowledged .*$`)

// TestBackupIsWhole holds everything a manager answers against what the one
// restored from its backup answers.
func TestBackupIsWhole(t *testing.T) {
	p := start(t, t.TempDir())
	p.data(http.MethodPost, "/rules", testRule)
	e := p.enrol()
	base := time.Now().Add(-time.Hour)
	p.mustPost(e, batch(0, 100, base)...)
	eventually(t, "alerts", func() error {
		if n := len(p.events(e, "alerts"+everything)); n != 10 {
			return fmt.Errorf("%d alerts", n)
		}
		return nil
	})
	// A report that was cleared stays cleared, and counts what comes next.
	p.data(http.MethodDelete, "/endpoints/"+e.UUID+"/report", "")
	p.mustPost(e, batch(1, 100, base)...)
	eventually(t, "alerts", func() error {
		if n := len(p.events(e, "alerts"+everything)); n != 20 {
			return fmt.Errorf("%d alerts", n)
		}
		return nil
	})
	if n := len(p.alerts()); n != 20 {
		t.Fatalf("%d alerts at the SIEM", n)
	}
	p.mustPost(e, []byte("not an event"))
	big := strings.Repeat("x", 300_000) // stands in the object store of files
	drop := filepath.Join(p.dir, "drop")
	if err := os.MkdirAll(drop, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(drop, "tool.bin"), []byte(big), 0o600); err != nil {
		t.Fatal(err)
	}
	p.data(http.MethodPost, "/endpoints/"+e.UUID+"/command", `{"command-line":"tool.bin","drop-files":["tool.bin"]}`)
	p.mustSend(e, artifact{Filename: "memory.dmp", Content: []byte("dump")})
	questions := []string{"/rules?name=.*", "/endpoints/" + e.UUID + "/logs" + everything,
		"/endpoints/" + e.UUID + "/alerts" + everything, "/endpoints/" + e.UUID + "/report", "/endpoints/" + e.UUID + "/command",
		"/endpoints/" + e.UUID + "/artifacts", "/stats"}
	var want []json.RawMessage
	for _, q := range questions {
		want = append(want, p.data(http.MethodGet, q, ""))
	}
	file := filepath.Join(t.TempDir(), "backup.tar")
	running := mustRun(t, "backup", "--data-dir", p.dir, "--to", file)
	p.terminate()
	// A manager that does not run is backed up as well, and to the same end.
	stopped := mustRun(t, "backup", "--data-dir", p.dir, "--to", file+".2")
	if lines := func(s string) string { return stable.ReplaceAllString(s, "") }; lines(running) != lines(stopped) {
		t.Errorf("running:\n%s\nstopped:\n%s", running, stopped)
	}

	dir := t.TempDir()
	mustRun(t, "restore", "--from", file, "--data-dir", dir)
	r := start(t, dir)
	var same endpoint
	if err := json.Unmarshal(r.data(http.MethodGet, "/endpoints/"+e.UUID, ""), &same); err != nil || same.Key != e.Key || same.Hostname != "host-"+e.UUID[:8] {
		t.Errorf("endpoint %+v, was %+v: %v", same, e, err)
	}
	for i, q := range questions {
		if got := r.data(http.MethodGet, q, ""); !bytes.Equal(got, want[i]) {
			t.Errorf("%s\n was: %.2000s\n now: %.2000s", q, want[i], got)
		}
	}
	// What the SIEM had acknowledged does not come again.
	if n := len(r.alerts()); n != 0 {
		t.Errorf("%d alerts come to the SIEM again", n)
	}
	if c := r.fetchCommand(e); len(c.Drop) != 1 || string(c.Drop[0].Data) != big {
		t.Errorf("the command of before: %+.300v", c)
	}
	ca := func(d string) []byte {
		b, err := os.ReadFile(filepath.Join(d, "tls", "ca.pem"))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if !bytes.Equal(ca(p.dir), ca(dir)) {
		t.Error("another certificate authority, agents would not trust it")
	}
}

// TestRestoreRefuses tries what must not be restored, or not there.
func TestRestoreRefuses(t *testing.T) {
	p := start(t, t.TempDir())
	e := p.enrol()
	p.mustPost(e, batch(0, 100, time.Now())...)
	file := filepath.Join(t.TempDir(), "backup.tar")
	mustRun(t, "backup", "--data-dir", p.dir, "--to", file)
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	flipped := slices.Clone(whole)
	at := bytes.Index(flipped, []byte("streams/EVENTS/snapshot"))
	flipped[at+600] ^= 1 // behind the header, in the content
	for name, content := range map[string][]byte{
		"cut off":       whole[:len(whole)/2],
		"one bit":       flipped,
		"no manifest":   whole[:bytes.LastIndex(whole, []byte("manifest.json"))],
		"something new": []byte("no backup at all"),
		"empty":         nil,
	} {
		damaged := filepath.Join(t.TempDir(), "damaged.tar")
		if err := os.WriteFile(damaged, content, 0o600); err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(t.TempDir(), "data")
		if out, code := runCommand(t, "restore", "--from", damaged, "--data-dir", dir); code != 1 || !strings.Contains(out, "not a whole backup") {
			t.Errorf("%s: exit code %d, %s", name, code, out)
		}
		if fileExists(dir) {
			t.Errorf("%s: something was restored", name)
		}
	}
	if out, code := runCommand(t, "restore", "--from", file, "--data-dir", p.dir); code != 1 || !strings.Contains(out, "not empty") {
		t.Errorf("over a manager: exit code %d, %s", code, out)
	}
	// A restore that broke off is not mistaken for a manager's data.
	half := t.TempDir()
	if err := os.WriteFile(filepath.Join(half, "RESTORING"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"--data-dir", half}, {"restore", "--from", file, "--data-dir", half}} {
		if out, code := runCommand(t, args...); code != 1 || !strings.Contains(out, "empt") {
			t.Errorf("%v: exit code %d, %s", args, code, out)
		}
	}
	for _, args := range [][]string{{"backup"}, {"restore"}, {"backup", "--to", "x", "--unknown"}, {"backup", "--to", "x", "--nats-url", "nats://127.0.0.1:1", "--nats-nkey", "/nowhere"}} {
		if out, code := runCommand(t, args...); code != 2 {
			t.Errorf("%v: exit code %d, want 2; %s", args, code, out)
		}
	}
	if out, code := runCommand(t, "backup", "--data-dir", t.TempDir(), "--to", file+".none"); code != 1 || !strings.Contains(out, "no manager") {
		t.Errorf("no manager: exit code %d, %s", code, out)
	}
}
