//go:build full

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
)

// ownMounts marks a test process that has a mount namespace of its own.
const ownMounts = "NIGHTJAR_TEST_OWN_MOUNTS"

// inOwnMounts runs the test again in a process that may mount file systems,
// which vanish with it. It returns true in that process. Where the system
// allows neither root nor users to do that, the test fails.
func inOwnMounts(t *testing.T) bool {
	if os.Getenv(ownMounts) != "" {
		return true
	}
	again := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	again.Env = append(os.Environ(), ownMounts+"=1")
	again.Stdout, again.Stderr = os.Stdout, os.Stderr
	again.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if uid := os.Getuid(); uid != 0 {
		again.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
		again.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		again.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	err := again.Run()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSYS) || errors.Is(err, syscall.EINVAL) {
		t.Fatalf("this test needs a small file system of its own: run it as root, or where user namespaces are allowed: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return false
}

// disk is a small file system in memory.
type disk struct {
	t   *testing.T
	dir string
}

func newDisk(t *testing.T, size int) *disk {
	t.Helper()
	d := &disk{t, t.TempDir()}
	if err := syscall.Mount("tmpfs", d.dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatalf("mount a file system in memory: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(d.dir, syscall.MNT_DETACH) })
	return d
}

// resize changes how much fits.
func (d *disk) resize(size int) {
	d.t.Helper()
	if err := syscall.Mount("tmpfs", d.dir, "tmpfs", syscall.MS_REMOUNT, fmt.Sprintf("size=%d", size)); err != nil {
		d.t.Fatal(err)
	}
}

// free returns how many bytes still fit.
func (d *disk) free() int64 {
	d.t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(d.dir, &st); err != nil {
		d.t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// filler is a file of somebody else.
func (d *disk) filler() string { return filepath.Join(d.dir, "filler") }

// fill lets somebody else take what is left.
func (d *disk) fill() error {
	f, err := os.Create(d.filler())
	if err != nil {
		return err
	}
	block := make([]byte, 1<<16)
	for err == nil {
		_, err = f.Write(block)
	}
	for block, err = block[:4096], nil; err == nil; {
		_, err = f.Write(block)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		return err
	}
	return f.Close()
}

// fullLoad sends batches one after the other and keeps what was acknowledged.
type fullLoad struct {
	p     *proc
	e     endpoint
	base  time.Time
	next  int
	acked []int
}

const fullBatch = 200

// send posts the next batch.
func (l *fullLoad) send() (int, error) {
	b := l.next
	l.next++
	code, err := l.p.post(l.e, false, noisy(b, fullBatch, l.base)...)
	if err == nil && code == http.StatusOK {
		l.acked = append(l.acked, b)
	}
	return code, err
}

// accepted sends until a batch is acknowledged.
func (l *fullLoad) accepted() {
	l.p.t.Helper()
	eventually(l.p.t, "events are accepted", func() error {
		code, err := l.send()
		if err == nil && code != http.StatusOK {
			err = fmt.Errorf("POST /logs: %d", code)
		}
		return err
	})
}

// verify demands that everything acknowledged is there, once, and that no
// event is there that was not sent, or twice.
func (l *fullLoad) verify() {
	l.p.t.Helper()
	eventually(l.p.t, "ready", l.p.ready)
	for what, step := range map[string]int{"logs": 1, "alerts": 10} {
		eventually(l.p.t, what, func() error {
			have := map[int]int{}
			for _, raw := range l.p.events(l.e, what+everything) {
				var ev struct {
					Event struct{ EventData struct{ N string } }
				}
				if err := json.Unmarshal(raw, &ev); err != nil {
					l.p.t.Fatal(err)
				}
				n, err := strconv.Atoi(ev.Event.EventData.N)
				if err != nil {
					l.p.t.Fatal(err)
				}
				if have[n]++; have[n] > 1 || n >= l.next*fullBatch {
					l.p.t.Fatalf("%s: event %d is there %d times", what, n, have[n])
				}
			}
			for _, b := range l.acked {
				for n := b*fullBatch + 3; n < (b+1)*fullBatch; n += step {
					if have[n] == 0 {
						return fmt.Errorf("event %d was acknowledged and is missing", n)
					}
				}
			}
			return nil
		})
	}
}

// refused demands that nothing is acknowledged, and that the manager is not
// ready for the reason why, a flag.
func (l *fullLoad) refused(why string) {
	l.p.t.Helper()
	for range 5 {
		if code, err := l.send(); err != nil || code != http.StatusServiceUnavailable {
			l.p.t.Fatalf("POST /logs while there is no room: %d %v", code, err)
		}
	}
	if err := l.p.ready(); err == nil || !strings.Contains(err.Error(), why) {
		l.p.t.Errorf("ready: %v", err)
	}
}

func startFull(t *testing.T, d *disk, args ...string) *fullLoad {
	p := start(t, filepath.Join(d.dir, "data"), args...)
	p.data(http.MethodPost, "/rules", testRule)
	return &fullLoad{p: p, e: p.enrol(), base: time.Now().Add(-time.Hour)}
}

// TestDiskFull lets events fill the disk: before its last block is taken they
// are refused, and as soon as there is room they are accepted again, by the
// same process.
func TestDiskFull(t *testing.T) {
	if !inOwnMounts(t) {
		return
	}
	d := newDisk(t, 64<<20)
	l := startFull(t, d)
	code := http.StatusOK
	for code == http.StatusOK {
		var err error
		if code, err = l.send(); err != nil {
			t.Fatal(err)
		}
	}
	if len(l.acked) < 10 {
		t.Fatalf("only %d batches were accepted", len(l.acked))
	}
	l.refused("min-free")
	l.verifyAlive()
	d.resize(128 << 20)
	l.accepted()
	l.verify()
	l.p.terminate()
	l.p.run()
	l.verify()
}

// verifyAlive demands that a manager that refuses events answers questions.
func (l *fullLoad) verifyAlive() {
	l.p.t.Helper()
	if n := len(l.p.events(l.e, "logs"+everything+"&limit=10")); n != 10 {
		l.p.t.Errorf("%d events are shown, want 10", n)
	}
}

// TestDiskFilledByOthers lets somebody else take the last block. What cannot
// be written is not acknowledged, the manager ends rather than staying up with
// a stream that takes nothing, does not start before there is room, and then
// has everything that was acknowledged.
func TestDiskFilledByOthers(t *testing.T) {
	if !inOwnMounts(t) {
		return
	}
	d := newDisk(t, 128<<20)
	l := startFull(t, d, "--min-free", "none") // so that it tries to write
	for range 20 {
		l.accepted()
	}
	l.verify()
	if err := d.fill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the manager ends", func() error {
		select {
		case <-l.p.exited:
			return nil
		default:
		}
		if d.free() > 0 {
			t.Fatal("the disk is not full") // the filler has to take what was given back
		}
		code, err := l.send()
		if err == nil && code == http.StatusOK {
			err = errors.New("events are still accepted")
		} else if err == nil {
			err = fmt.Errorf("POST /logs: %d", code)
		}
		return err
	})
	<-l.p.exited
	if l.p.exit == nil {
		t.Error("the manager ended as if it had been asked to")
	}
	l.p.args = nil
	if err := l.p.launch(); err == nil || !strings.Contains(err.Error(), "min-free") {
		t.Fatalf("a start without room: %v", err)
	}
	if err := os.Remove(d.filler()); err != nil {
		t.Fatal(err)
	}
	l.p.run()
	l.accepted()
	l.verify()
}

// TestDiskFullApart fills the disks of services that run apart. log-ingest stops
// to fold before the last block of its disk is taken, says so, answers what it
// has, and goes on in the same process when there is room; what it had not
// folded is safe in the stream. A gateway without room refuses events.
func TestDiskFullApart(t *testing.T) {
	if !inOwnMounts(t) {
		return
	}
	c := startNATS(t, 1)
	store, door := newDisk(t, 64<<20), newDisk(t, 64<<20)
	var ingest *service
	for _, kind := range access.Services {
		switch kind {
		case access.Ingest:
			ingest = c.add(kind, "--data-dir", filepath.Join(store.dir, "data"))
		case access.Gateway:
			c.add(kind, "--data-dir", filepath.Join(door.dir, "data"))
		default:
			c.add(kind)
		}
	}
	c.ready()
	p := c.on(t, 0)
	p.data(http.MethodPost, "/rules", testRule)
	l := &fullLoad{p: p, e: p.enrol(), base: time.Now().Add(-time.Hour)}
	c.everywhere(t, l.e)
	noRoom := func() error { return answersOK(ingest.ops + "/readyz") }
	for err := noRoom(); err == nil || !strings.Contains(err.Error(), "min-free"); err = noRoom() {
		if l.accepted(); len(l.acked) > 2000 {
			t.Fatalf("log-ingest has room for everything: %v", err)
		}
	}
	for range 20 {
		l.accepted() // the record has room
	}
	l.verifyAlive()
	if free := store.free(); free == 0 {
		t.Error("the last block is taken")
	}
	store.resize(256 << 20)
	l.verify()
	eventually(t, "log-ingest is ready", noRoom)

	filler := filepath.Join(door.dir, "filler")
	if err := os.WriteFile(filler, make([]byte, door.free()-8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "no room", func() error {
		if err := p.ready(); err == nil || !strings.Contains(err.Error(), "min-free") {
			return fmt.Errorf("ready: %w", err)
		}
		return nil
	})
	l.refused("min-free")
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	l.accepted()
	l.verify()
	for _, s := range c.services {
		s.terminate()
	}
}
