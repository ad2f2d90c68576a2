package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// unready waits until /readyz refuses with a reason that has all of says.
func (p *proc) unready(says ...string) {
	p.t.Helper()
	eventually(p.t, "not ready", func() error {
		resp, err := http.Get(p.ops + "/readyz")
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusServiceUnavailable {
			return errors.New(resp.Status)
		}
		for _, s := range says {
			if !strings.Contains(string(body), s) {
				return fmt.Errorf("%s, want %s", body, s)
			}
		}
		return nil
	})
}

// TestGap loses what JetStream holds in several ways. Each is noticed by the
// readiness, a metric and the log; deleting the stores that stand still makes
// the manager ready again, with what is left.
func TestGap(t *testing.T) {
	t.Parallel()
	type gap struct{ service, view string }
	filled := start(t, t.TempDir(), "--tls", "off")
	filled.fill()
	filled.terminate()
	alerts := []gap{{"rule_engine", "raised"}, {"log_ingest", "alerts"}, {"report_scorer", "alerts"}}
	for name, c := range map[string]struct {
		// lose damages the data of a manager that is stopped.
		lose func(p *proc)
		says string
		gaps []gap
	}{
		"stream of alerts made anew": {func(p *proc) { p.lose("ALERTS") }, "stream ALERTS was created at", alerts},
		"stream of events made anew": {func(p *proc) { p.lose("EVENTS") }, "stream EVENTS was created at", []gap{{"log_ingest", "events"}}},
		"bucket of endpoints made anew": {func(p *proc) { p.lose("KV_endpoints") }, "stream KV_endpoints was created at",
			[]gap{{"endpoint_registry", "endpoints"}, {"api_gateway", "endpoints"}}},
		"bucket of rules made anew":    {func(p *proc) { p.lose("KV_rules") }, "stream KV_rules was created at", []gap{{"rule_engine", "rules"}}},
		"bucket of commands made anew": {func(p *proc) { p.lose("KV_commands") }, "stream KV_commands was created at", []gap{{"command_dispatch", "commands"}}},
		"bucket of operators made anew": {func(p *proc) { p.lose("KV_access") }, "stream KV_access was created at",
			[]gap{{"api_gateway", "access"}}},
		"messages that were not folded": {func(p *proc) { p.skipEvents() }, "stream EVENTS begins at sequence", []gap{{"log_ingest", "events"}}},
	} {
		t.Run(name, func(t *testing.T) {
			p := &proc{t: t, dir: filepath.Join(t.TempDir(), "data"), args: filled.args}
			if err := os.CopyFS(p.dir, os.DirFS(filled.dir)); err != nil {
				t.Fatal(err)
			}
			p.endWithTest()
			c.lose(p)
			if err := p.launch(); err != nil {
				t.Fatal(err)
			}
			p.unready(c.says)
			for _, g := range c.gaps {
				eventually(t, "metric", func() error {
					if p.metric("nightjar_"+g.service+"_view_gap", `"`+g.view+`"`) != 1 {
						return fmt.Errorf("view %s of %s has no gap", g.view, g.service)
					}
					return nil
				})
			}
			if log := p.log(); !strings.Contains(log, "view stands still") || !strings.Contains(log, c.says) {
				t.Errorf("the log does not say that %s", c.says)
			}
			p.terminate()
			for _, g := range c.gaps {
				p.remove(strings.ReplaceAll(g.service, "_", "-"))
			}
			p.run()
			if n := p.metric("nightjar_" + c.gaps[0].service + "_view_gap"); n != 0 {
				t.Errorf("%v gaps are left", n)
			}
		})
	}
}

// lose deletes a stream. Its owner makes it anew.
func (p *proc) lose(stream string) {
	p.t.Helper()
	dir := filepath.Join(p.dir, "nats", "jetstream", "$G", "streams", stream)
	if !fileExists(dir) {
		p.t.Fatalf("no stream in %s", dir)
	}
	if err := os.RemoveAll(dir); err != nil {
		p.t.Fatal(err)
	}
}

// record serves the streams of a manager that does not run, until end is called.
func (p *proc) record() (js jetstream.JetStream, end func()) {
	p.t.Helper()
	srv, err := server.NewServer(&server.Options{StoreDir: filepath.Join(p.dir, "nats"), JetStream: true, DontListen: true, NoSigs: true, NoLog: true})
	if err != nil {
		p.t.Fatal(err)
	}
	srv.Start()
	if !srv.ReadyForConnections(10 * time.Second) {
		p.t.Fatal("nats server is not ready")
	}
	nc, err := nats.Connect("", nats.InProcessServer(srv))
	if err != nil {
		p.t.Fatal(err)
	}
	js, err = jetstream.New(nc)
	if err != nil {
		p.t.Fatal(err)
	}
	return js, func() {
		nc.Close()
		srv.Shutdown()
		srv.WaitForShutdown()
	}
}

// skipEvents lets messages of EVENTS come and go while no view is there to
// fold them.
func (p *proc) skipEvents() {
	p.t.Helper()
	js, end := p.record()
	defer end()
	var last uint64
	for range 5 {
		ack, err := js.Publish(p.t.Context(), "edr.events.0.00000000-0000-0000-0000-000000000000", []byte("x"))
		if err != nil {
			p.t.Fatal(err)
		}
		last = ack.Sequence
	}
	s, err := js.Stream(p.t.Context(), "EVENTS")
	if err != nil {
		p.t.Fatal(err)
	}
	if err := s.Purge(p.t.Context(), jetstream.WithPurgeSequence(last)); err != nil {
		p.t.Fatal(err)
	}
}
