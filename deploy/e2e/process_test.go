package e2e

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/testlog"
)

// running is a program as a test started it last, with the log of all its
// starts. The zero value has not been started.
type running struct {
	cmd    *exec.Cmd
	output testlog.Log
	// exited is closed when the program has ended, with what Wait said.
	exited chan struct{}
	exit   error
}

// begin starts the program. read, unless it is nil, reads from a pipe of cmd to
// its end.
func (r *running) begin(cmd *exec.Cmd, read func()) error {
	r.cmd = cmd
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	r.exited = exited
	go func() {
		if read != nil {
			read()
		}
		r.exit = cmd.Wait()
		close(exited)
	}()
	return nil
}

// log returns what the program has written so far.
func (r *running) log() string { return r.output.String() }

// stop ends the program with SIGTERM and demands a clean end.
func (r *running) stop(t *testing.T, name string) {
	t.Helper()
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatalf("%s: SIGTERM: %v", name, err)
	}
	select {
	case <-r.exited:
		if r.exit != nil {
			t.Fatalf("%s: SIGTERM: %v", name, r.exit)
		}
	case <-time.After(25 * time.Second):
		t.Fatalf("%s: SIGTERM: still running after 25s", name)
	}
}

// endWith ends the program with the test at the latest, and then shows the last
// bytes of its log when the test has failed.
func (r *running) endWith(t *testing.T, name string, bytes int) {
	t.Cleanup(func() {
		if r.exited != nil {
			_ = r.cmd.Process.Kill()
			<-r.exited
		}
		if t.Failed() {
			log := r.log()
			t.Logf("log of %s:\n%s", name, log[max(0, len(log)-bytes):])
		}
	})
}

// process is a program that runs beside others in a test.
type process struct {
	t    *testing.T
	name string
	path string
	args []string
	env  []string

	running
}

// newProcess describes a program, which ends with the test at the latest. Its
// log is shown when the test has failed.
func newProcess(t *testing.T, name, path string, args, env []string) *process {
	p := &process{t: t, name: name, path: path, args: args, env: env}
	p.endWith(t, name, 4000)
	return p
}

// run starts the program.
func (p *process) run() {
	p.t.Helper()
	cmd := exec.Command(p.path, p.args...)
	cmd.Env = append(os.Environ(), p.env...)
	cmd.Stdout, cmd.Stderr = &p.output, &p.output
	if err := p.begin(cmd, nil); err != nil {
		p.t.Fatal(err)
	}
}

// alive returns an error when the program has ended.
func (p *process) alive() error {
	select {
	case <-p.exited:
		return fmt.Errorf("%s has ended: %v", p.name, p.exit)
	default:
		return nil
	}
}

// terminate stops the program with SIGTERM and demands a clean end.
func (p *process) terminate() {
	p.t.Helper()
	p.stop(p.t, p.name)
}

// kill ends the program with SIGKILL.
func (p *process) kill() {
	p.t.Helper()
	p.signal(syscall.SIGKILL)
	<-p.exited
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatalf("%s: %v: %v", p.name, s, err)
	}
}

// ports are given out in turn, from a random one on, so that two test runs on
// a machine hardly meet. They lie below those that the system gives out.
var (
	firstPort = uint32(rand.IntN(12000))
	portsUsed atomic.Uint32
)

// freeAddr returns an address of the loopback interface that nobody listens
// on, and that a program keeps when it is started again.
func freeAddr(t *testing.T) string {
	t.Helper()
	for range 1000 {
		addr := fmt.Sprintf("127.0.0.1:%d", 20000+(firstPort+portsUsed.Add(1))%12000)
		if l, err := net.Listen("tcp", addr); err == nil {
			_ = l.Close()
			return addr
		}
	}
	t.Fatal("no free port")
	return ""
}
