//go:build cluster

package e2e

import (
	"encoding/json"
	"flag"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
)

// away is how long NATS is stopped.
var away = flag.Duration("away", 15*time.Second, "how long NATS is stopped under load")

// pause stops the program without ending it: to everybody else it is a host
// that does not answer any more. resume lets it go on.
func (p *process) pause()  { p.signal(syscall.SIGSTOP) }
func (p *process) resume() { p.signal(syscall.SIGCONT) }

// cutOff cuts a server off from the others; its clients still reach it.
func (c *cluster) cutOff(n int) {
	for _, l := range c.links {
		if l.from == n || l.to == n {
			l.mu.Lock()
			l.cut = make(chan struct{})
			l.mu.Unlock()
		}
	}
}

// serverOf returns a server that a client with this name is connected to.
func (c *cluster) serverOf(client string) int {
	c.t.Helper()
	for n, s := range c.nats {
		var connz struct {
			Connections []struct {
				Name string `json:"name"`
			} `json:"connections"`
		}
		resp, err := http.Get("http://" + s.monitor + "/connz")
		if err != nil {
			c.t.Fatal(err)
		}
		err = json.NewDecoder(resp.Body).Decode(&connz)
		_ = resp.Body.Close()
		if err != nil {
			c.t.Fatal(err)
		}
		for _, conn := range connz.Connections {
			if conn.Name == client {
				return n
			}
		}
	}
	c.t.Fatalf("%s is connected to no server", client)
	return 0
}

// mend ends what cutOff began.
func (c *cluster) mend() {
	for _, l := range c.links {
		l.mend()
	}
}

// TestNATSAway kills, stops and freezes the one NATS server under load.
func TestNATSAway(t *testing.T) {
	c := startNATS(t, 1)
	c.addAll(1)
	c.add(access.Gateway)
	c.ready()
	l := startLoad(t, c)
	l.progress()
	for range 3 {
		c.nats[0].kill()
		c.nats[0].run()
		l.progress()
	}
	for _, end := range []struct {
		name        string
		stop, start func()
	}{
		{"killed", c.nats[0].kill, c.nats[0].run},
		{"frozen", c.nats[0].pause, c.nats[0].resume},
	} {
		before := l.refused.Load()
		end.stop()
		time.Sleep(*away) // the time it is away, not a wait for something
		l.refusedSince(before)
		end.start()
		l.progress()
	}
	l.verify(c)
}

// TestNATSCluster takes one server after the other from a cluster of three
// that keeps everything in three copies: it is killed, frozen, cut off from the
// others but not from its clients, and loses its disk. In the end two are gone.
func TestNATSCluster(t *testing.T) {
	c := startNATS(t, 3)
	c.addAll(1)
	c.add(access.Gateway)
	c.ready()
	c.replicated(t, 3)
	l := startLoad(t, c)
	l.progress()

	c.nats[0].kill()
	l.progress()
	c.nats[0].run()
	eventually(t, "the killed server has caught up", c.nats[0].healthy)
	l.progress()

	c.nats[1].pause() // its connections stand and nothing comes of them
	l.progress()
	time.Sleep(*away)
	l.progress()
	c.nats[1].resume()
	eventually(t, "the server that was frozen has caught up", c.nats[1].healthy)
	l.progress()

	cut := c.serverOf("nightjar-" + access.Gateway)
	c.cutOff(cut)
	time.Sleep(*away)
	l.progress()
	c.ready() // also the gateway that was connected to it
	c.mend()
	eventually(t, "the server that was cut off has caught up", c.nats[cut].healthy)
	l.progress()

	c.nats[2].kill()
	l.progress()
	if err := os.RemoveAll(c.store(2)); err != nil {
		t.Fatal(err)
	}
	c.nats[2].run()
	eventually(t, "the one that lost its disk has everything again", c.nats[2].healthy)
	l.progress()
	c.nats[0].kill()
	l.progress() // by what the last one got

	before := l.refused.Load()
	c.nats[1].kill()
	l.refusedSince(before)
	c.nats[0].run()
	c.nats[1].run()
	l.progress()
	l.verify(c)
}

// TestReplicas runs two processes of every service and kills one of each in
// turn.
func TestReplicas(t *testing.T) {
	c := startNATS(t, 1)
	c.addAll(2)
	l := startLoad(t, c)
	l.progress()
	for n, kind := range access.Services {
		s := c.of(kind)[n%2]
		s.kill()
		l.progress()
		s.run()
		l.progress()
		c.ready()
	}
	l.verify(c)
}

// TestBackupOfCluster backs a cluster of three up under load, and restores it
// into another one and into one process.
func TestBackupOfCluster(t *testing.T) {
	c := startNATS(t, 3)
	c.addAll(1)
	load := loadForBackup(t, c.on(t, 0))
	file := c.backUp(t)
	load.end()
	for _, s := range c.services {
		s.terminate()
	}

	dir := filepath.Join(t.TempDir(), "one")
	mustRun(t, "restore", "--from", file, "--data-dir", dir)
	one := start(t, dir)
	load.verify(one, one.alerts)
	one.terminate()

	fresh := startNATS(t, 3)
	fresh.restore(t, file)
	fresh.addAll(1)
	fresh.replicated(t, 3)
	siem := fresh.connect("siem")
	load.verify(fresh.on(t, 0), func() []jetstream.Msg { return fresh.drain(t, siem) })
	fresh.undisturbed()
}
