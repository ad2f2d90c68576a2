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

// process is a program that runs beside others in a test.
type process struct {
	t    *testing.T
	name string
	path string
	args []string
	env  []string

	cmd    *exec.Cmd
	output testlog.Log
	// exited is closed when the program has ended, with what Wait said.
	exited chan struct{}
	exit   error
}

// newProcess describes a program, which ends with the test at the latest. Its
// log is shown when the test has failed.
func newProcess(t *testing.T, name, path string, args, env []string) *process {
	p := &process{t: t, name: name, path: path, args: args, env: env}
	t.Cleanup(func() {
		if p.exited != nil {
			_ = p.cmd.Process.Kill()
			<-p.exited
		}
		if t.Failed() {
			log := p.log()
			t.Logf("log of %s:\n%s", name, log[max(0, len(log)-4000):])
		}
	})
	return p
}

// run starts the program.
func (p *process) run() {
	p.t.Helper()
	p.cmd = exec.Command(p.path, p.args...)
	p.cmd.Env = append(os.Environ(), p.env...)
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	cmd, exited := p.cmd, make(chan struct{})
	p.exited = exited
	go func() {
		p.exit = cmd.Wait()
		close(exited)
	}()
}

// log returns what the program has written so far.
func (p *process) log() string { return p.output.String() }

// running returns an error when the program has ended.
func (p *process) running() error {
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
	p.signal(syscall.SIGTERM)
	select {
	case <-p.exited:
		if p.exit != nil {
			p.t.Fatalf("%s: SIGTERM: %v", p.name, p.exit)
		}
	case <-time.After(25 * time.Second):
		p.t.Fatalf("%s: SIGTERM: still running after 25s", p.name)
	}
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
