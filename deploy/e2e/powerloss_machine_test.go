//go:build powerloss

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nightjar-edr/nightjar/deploy/e2e/internal/initramfs"
	"github.com/nightjar-edr/nightjar/deploy/e2e/internal/writelog"
)

// machine is a virtual machine that runs the manager and whose power is cut.
type machine struct {
	t *testing.T
	// dir holds the disk as the last cut left it (disk) and as the machine that
	// runs sees it (run), the log of its writes (log), and the initrd.
	dir    string
	kernel string
	// sync is the manager's --sync.
	sync string

	qemu *process
	cuts int
}

// newMachine prepares a machine with an empty disk. It is off.
func newMachine(t *testing.T, kernel, sync string) *machine {
	t.Helper()
	m := &machine{t: t, dir: t.TempDir(), sync: sync}
	for _, program := range []string{"qemu-system-x86_64", "mke2fs"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("this test needs %s; Debian has it in qemu-system-x86 and e2fsprogs", program)
		}
	}
	kernels, err := filepath.Glob(filepath.Join(kernel, "boot", "vmlinuz-*"))
	if err != nil || len(kernels) == 0 {
		t.Fatalf("no kernel in %s: run it by make powerloss", filepath.Join(kernel, "boot"))
	}
	m.kernel = kernels[0]
	m.makeInitrd(filepath.Join(kernel, "lib", "modules", strings.TrimPrefix(filepath.Base(m.kernel), "vmlinuz-")))
	m.command("truncate", "-s", "2G", m.file("disk"))
	// Everything is written now, not by the guest when it is first started.
	m.command("mke2fs", "-q", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0", m.file("disk"))
	return m
}

func (m *machine) file(name string) string { return filepath.Join(m.dir, name) }

func (m *machine) command(name string, args ...string) {
	m.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		m.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// makeInitrd packs the init process, the manager, what it may drop, and the
// drivers of the machine.
func (m *machine) makeInitrd(modules string) {
	m.t.Helper()
	m.command("go", "build", "-o", m.file("guest"), "./internal/guest")
	list := []initramfs.File{}
	add := func(name, path string) {
		data, err := os.ReadFile(path)
		if err != nil {
			m.t.Fatal(err)
		}
		list = append(list, initramfs.File{Name: name, Data: data})
	}
	add("init", m.file("guest"))
	add("standalone", binary)
	list = append(list, initramfs.File{Name: "drop/tool", Data: droppedTool})
	drivers, err := initramfs.Modules(os.DirFS(modules), "virtio_pci", "virtio_blk", "virtio_net", "ext4")
	if err != nil {
		m.t.Fatal(err)
	}
	for i, d := range drivers {
		add(fmt.Sprintf("modules/%03d-%s", i, filepath.Base(d)), filepath.Join(modules, d))
	}
	var b bytes.Buffer
	if err := initramfs.Write(&b, list); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(m.file("initrd"), b.Bytes(), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

// on switches the machine on and returns the manager when it is ready. The
// folders of the given stores are deleted before it starts.
func (m *machine) on(remove ...string) *proc {
	m.t.Helper()
	m.command("cp", "--sparse=always", m.file("disk"), m.file("run"))
	if err := os.WriteFile(m.file("log"), nil, 0o600); err != nil {
		m.t.Fatal(err)
	}
	p := &proc{t: m.t, dir: m.t.TempDir()}
	// Each start has ports of its own: what was sent before must not come late.
	admin, agent, nats, ops, files := freeAddr(m.t), freeAddr(m.t), freeAddr(m.t), freeAddr(m.t), freeAddr(m.t)
	p.admin, p.agent, p.nats, p.ops = "http://"+admin, "http://"+agent, nats, "http://"+ops
	p.client = &http.Client{Timeout: time.Minute, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	network := "user,id=n,restrict=on"
	manager := []string{"manager", "--tls=off", "--drop-dir=/drop", "--admin-key=" + adminKey, "--log-format=text", "--sync=" + m.sync}
	for i, port := range []struct{ flag, host string }{{"admin", admin}, {"agent", agent}, {"nats", nats}, {"ops", ops}, {"", files}} {
		inside := fmt.Sprintf("10.0.2.15:%d", []int{8001, 8000, 4222, 8002, 8003}[i])
		network += ",hostfwd=tcp:" + port.host + "-" + inside
		if port.flag != "" {
			manager = append(manager, "--"+port.flag+"-addr="+inside)
		}
	}
	arguments := strings.Join(append([]string{"-remove=" + strings.Join(remove, ",")}, manager...), " ")
	// The log says what had reached the disk; neither file has to be safe from
	// a power cut of the host.
	disk := "driver=blklogwrites,node-name=disk,file.driver=file,file.cache.no-flush=on,file.filename=" + m.file("run") +
		",log.driver=file,log.cache.no-flush=on,log.filename=" + m.file("log")
	m.qemu = newProcess(m.t, "virtual machine", "nice", []string{"-n", "5", "qemu-system-x86_64", "-machine", "pc", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "1024",
		"-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", m.kernel, "-initrd", m.file("initrd"),
		"-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=on rdinit=/init -- " + arguments,
		"-blockdev", disk, "-device", "virtio-blk-pci,drive=disk,write-cache=on,discard=off,write-zeroes=off",
		"-netdev", network, "-device", "virtio-net-pci,netdev=n,romfile="}, nil)
	m.qemu.run()
	p.exited = m.qemu.exited
	// Until the machine has a network, connections are accepted and hang.
	eventually(m.t, "the manager prints its addresses", func() error {
		if err := m.qemu.alive(); err != nil {
			m.t.Fatal(err)
		}
		if !strings.Contains(m.qemu.log(), "/readyz") {
			return errors.New("it has not")
		}
		return nil
	})
	eventually(m.t, "the manager is ready", func() error {
		if err := m.qemu.alive(); err != nil {
			m.t.Fatal(err)
		}
		return p.ready()
	})
	m.fetch(files, "siem.nk", p.dir)
	m.fetch(files, "backup.nk", p.dir)
	return p
}

// fetch copies a file of the manager.
func (m *machine) fetch(from, name, to string) {
	m.t.Helper()
	eventually(m.t, name, func() error {
		resp, err := http.Get("http://" + from + "/" + name)
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		data, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = errors.New(resp.Status)
		}
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, name), data, 0o600)
	})
}

// cut takes the power away: all that is left is what the guest had flushed to
// its disk and, with keep, any part of what it wrote later.
func (m *machine) cut(keep *rand.Rand) {
	m.t.Helper()
	_ = m.qemu.cmd.Process.Kill()
	<-m.qemu.exited
	m.healthy()
	m.cuts++
	disk, err := os.OpenFile(m.file("disk"), os.O_RDWR, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	defer func() { _ = disk.Close() }()
	log, err := os.Open(m.file("log"))
	if err != nil {
		m.t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	r, err := writelog.Replay(disk, log, keep)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Logf("cut %d: %d writes and %d flushes are safe; of what was written later %d blocks are kept and %d lost", m.cuts, r.Writes, r.Flushes, r.Kept, r.Lost)
}

// healthy demands that neither manager nor kernel complained of what it found.
func (m *machine) healthy() {
	m.t.Helper()
	log := m.qemu.log()
	lower := strings.ToLower(log)
	for _, bad := range []string{"panic", "permissions violation", "stands still", "ext4-fs error"} {
		if i := strings.Index(lower, bad); i >= 0 {
			m.t.Errorf("the machine's log has %q: %.2000s", bad, log[max(0, i-500):])
		}
	}
}
