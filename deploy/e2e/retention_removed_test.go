package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
)

// steadyBatch is how many events a steady agent sends at once.
const steadyBatch = 20

// steady is agents that send batch after batch, each until it is acknowledged.
type steady struct {
	t      *testing.T
	p      *proc
	agents []*steadyAgent
	base   time.Time
	// gate is held for writing while the manager is away.
	gate sync.RWMutex
	stop chan struct{}
	work sync.WaitGroup
}

// steadyAgent is an agent with the number of batches that it has begun to send
// and of those that are acknowledged.
type steadyAgent struct {
	e           endpoint
	begun, sent atomic.Int64
}

func newSteady(p *proc, agents int) *steady {
	p.t.Helper()
	s := &steady{t: p.t, p: p, base: time.Now().Add(-time.Hour), stop: make(chan struct{})}
	for range agents {
		s.agents = append(s.agents, &steadyAgent{e: p.enrol()})
	}
	return s
}

// start lets the agents send until end is called.
func (s *steady) start() (end func()) {
	for _, a := range s.agents {
		s.work.Go(func() {
			for {
				select {
				case <-s.stop:
					return
				case <-time.After(30 * time.Millisecond):
					s.send(a)
				}
			}
		})
	}
	return sync.OnceFunc(func() { close(s.stop); s.work.Wait() })
}

// send sends the next batch of an agent.
func (s *steady) send(a *steadyAgent) {
	lines := batch(int(a.begun.Add(1)-1), steadyBatch, s.base)
	for until := time.Now().Add(deadline); ; time.Sleep(20 * time.Millisecond) {
		s.gate.RLock()
		code, err := s.p.post(a.e, true, lines...)
		s.gate.RUnlock()
		if err == nil && code == http.StatusOK {
			a.sent.Add(1)
			return
		}
		if time.Now().After(until) {
			s.t.Errorf("POST /logs: %d %v", code, err)
			return
		}
	}
}

// crash kills the manager and starts it again.
func (s *steady) crash() {
	s.t.Helper()
	s.p.kill()
	s.gate.Lock()
	defer s.gate.Unlock()
	s.p.run()
}

// numbers returns the numbers of the first n batches' events, of all or of those
// that testRule matches.
func (s *steady) numbers(what string, n int64) (list []string) {
	for b := range int(n) {
		for _, l := range batch(b, steadyBatch, s.base) {
			if what == "logs" || bytes.Contains(l, []byte("evil.exe")) {
				list = append(list, number(s.t, l))
			}
		}
	}
	return list
}

// newest waits until the newest of what an agent has sent, and nothing else, is
// shown, once and without a hole, and returns how much that is.
func (s *steady) newest(when string, a *steadyAgent, what string) int {
	s.t.Helper()
	all := s.numbers(what, a.sent.Load())
	var got []string
	eventually(s.t, when+": the newest "+what, func() error {
		got = got[:0]
		for _, l := range s.p.events(a.e, what+everything) {
			got = append(got, number(s.t, l))
		}
		if len(got) == 0 || len(got) > len(all) || !slices.Equal(got, all[len(all)-len(got):]) {
			return fmt.Errorf("%d of %d, from %v on", len(got), len(all), got[:min(1, len(got))])
		}
		return nil
	})
	return len(got)
}

// removing waits until retention has removed messages from a stream since the
// manager was started.
func (s *steady) removing(stream string) {
	s.t.Helper()
	service := map[string]string{"EVENTS": "api_gateway", "ALERTS": "rule_engine"}[stream]
	eventually(s.t, "messages removed from "+stream, func() error {
		if n := s.p.metric("nightjar_"+service+"_retention_removed_messages_total", `reason="size"`, `stream="`+stream+`"`); n == 0 {
			return errors.New("none")
		}
		return nil
	})
}

// TestRetentionAndRemoval removes what an endpoint has stored while endpoints
// send, retention removes the oldest, and the manager is killed amid it. Nothing
// of what was removed is left or comes back; what was sent since, and what others
// have sent, is there as far as retention has kept it, once and without a hole,
// also in stores that are built anew; and no view takes any of it for a gap.
func TestRetentionAndRemoval(t *testing.T) {
	t.Parallel()
	p := start(t, t.TempDir(), "--tls", "off", "--retention-events-size", "64KiB", "--retention-alerts-size", "200KiB")
	p.data(http.MethodPost, "/rules", testRule)
	s := newSteady(p, 3)
	removed, others := s.agents[0], s.agents[1:]
	p.mustPost(removed.e, []byte("not json"))
	p.mustSend(removed.e, artifact{Filename: "dump.bin", Content: bytes.Repeat([]byte{0, 7}, 50<<10)})
	end := s.start()
	defer end()
	s.removing("EVENTS")
	s.removing("ALERTS")

	// What was acknowledged before the first request goes, what is begun after
	// the answer stays; the answer to a request that a crash cuts off is not
	// needed, as it is repeated.
	before := removed.sent.Load()
	path := "/endpoints/" + removed.e.UUID + "/stored"
	cut := make(chan struct{})
	go func() {
		defer close(cut)
		s.gate.RLock()
		defer s.gate.RUnlock()
		_, _ = p.ask(http.MethodDelete, path, "")
	}()
	s.crash()
	<-cut
	eventually(t, "the removal", func() error {
		a, err := p.ask(http.MethodDelete, path, "")
		if err == nil && a.Error != "" {
			err = errors.New(a.Error)
		}
		return err
	})
	after := removed.begun.Load()
	s.removing("EVENTS")
	s.removing("ALERTS")
	eventually(t, "batches behind the removal", func() error {
		if n := removed.sent.Load(); n < after+2 {
			return fmt.Errorf("%d", n-after)
		}
		return nil
	})
	end()

	kept := map[string]int{}
	check := func(when string) {
		t.Helper()
		for i, a := range s.agents {
			for _, what := range []string{"logs", "alerts"} {
				id, n, all := fmt.Sprint(i, " ", what), s.newest(when, a, what), len(s.numbers(what, a.sent.Load()))
				if most, again := kept[id]; again && (n > most || n == all) {
					t.Errorf("%s: %d of %d %s of agent %d, %d before", when, n, all, what, i, most)
				}
				kept[id] = n
				if most := all - len(s.numbers(what, before)); a == removed && n > most {
					t.Errorf("%s: %d %s are shown, some of them removed: at most %d were sent since", when, n, what, most)
				}
			}
		}
		if got := p.data(http.MethodGet, "/endpoints/"+removed.e.UUID+"/artifacts", ""); string(got) != "[]" {
			t.Errorf("%s: artifacts %s", when, got)
		}
		for _, service := range []string{"log_ingest", "rule_engine", "report_scorer"} {
			if n := p.metric("nightjar_" + service + "_view_gap"); n != 0 {
				t.Errorf("%s: %v views of %s report a gap", when, n, service)
			}
		}
	}
	check("at the end")
	for _, a := range others {
		p.reportIs(a.e, len(s.numbers("alerts", a.sent.Load())), `{}`)
	}
	p.counts(removed.e, len(s.numbers("alerts", removed.sent.Load()))-len(s.numbers("alerts", after)), len(s.numbers("alerts", removed.sent.Load()))-len(s.numbers("alerts", before)))
	p.kill()
	for _, store := range stores {
		p.remove(store)
	}
	p.run()
	check("with all stores built anew")
	p.terminate()
	if log := p.log(); strings.Contains(log, "deleted from within") || strings.Contains(log, "stands still") {
		t.Error("a view took what was removed for a loss")
	}
	p.holdsNoneBefore(removed.e)
	if held, audited := p.left(removed.e, "stored.delete"); held["DEADLETTER"] != 0 || held["artifacts"] != 0 || held["EVENTS"] == 0 || audited == 0 {
		t.Errorf("the streams hold %v of the endpoint, and %d audit records", held, audited)
	}
}

// counts demands that an endpoint's report counts a number of alerts within
// bounds.
func (p *proc) counts(e endpoint, least, most int) {
	p.t.Helper()
	eventually(p.t, "the report", func() error {
		var report struct {
			Alerts int `json:"alert-count"`
		}
		if err := json.Unmarshal(p.data(http.MethodGet, "/endpoints/"+e.UUID+"/report", ""), &report); err != nil {
			return err
		}
		if report.Alerts < least || report.Alerts > most {
			return fmt.Errorf("%d alerts, want %d to %d", report.Alerts, least, most)
		}
		return nil
	})
}

// lastRemoval reads the record of an endpoint's last removal, which is of no
// generation where nothing was removed. It reads the stream, as whoever makes
// backups may not ask for a bucket's keys.
func (p *proc) lastRemoval(js jetstream.JetStream, e endpoint) (record message.RemovalRecord) {
	p.t.Helper()
	s, err := js.Stream(p.t.Context(), "KV_removed")
	if err != nil {
		p.t.Fatal(err)
	}
	m, err := s.GetMsg(p.t.Context(), 1, jetstream.WithGetMsgSubject("$KV.removed."+e.UUID))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return record
	} else if err != nil {
		p.t.Fatal(err)
	}
	if err := json.Unmarshal(m.Data, &record); err != nil {
		p.t.Fatal(err)
	}
	return record
}

// holdsNoneBefore demands that the streams hold nothing of an endpoint from
// before its last removal, but for what was on its way then and stands behind the
// ends that the removal names: that goes two minutes later. The program must not
// run.
func (p *proc) holdsNoneBefore(e endpoint) {
	p.t.Helper()
	js, end := p.record()
	defer end()
	record := p.lastRemoval(js, e)
	if record.Generation == 0 {
		p.t.Fatalf("no removal of %s is recorded", e.UUID)
	}
	for _, name := range []string{"EVENTS", "ALERTS"} {
		s, err := js.Stream(p.t.Context(), name)
		if err != nil {
			p.t.Fatal(err)
		}
		if record.Ends[name] == 0 {
			p.t.Errorf("the removal names no end of %s", name)
		}
		for seq := uint64(0); ; {
			m, err := s.GetMsg(p.t.Context(), seq+1, jetstream.WithGetMsgSubject("edr."+strings.ToLower(name)+".*."+e.UUID))
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				break
			} else if err != nil {
				p.t.Fatal(err)
			}
			seq = m.Sequence
			if g := message.GenerationOf(m.Header); g < record.Generation && seq <= record.Ends[name] {
				p.t.Errorf("%s holds message %d of generation %d, removed is what is below %d up to message %d", name, seq, g, record.Generation, record.Ends[name])
			}
		}
	}
}
