package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/tracing/tracetest"
)

// TestServicesApart runs each service as a process of its own, with a key of
// its own, beside a NATS server with the configuration that is shipped, and
// two gateways side by side.
func TestServicesApart(t *testing.T) {
	t.Parallel()
	c := startNATS(t, 1)
	c.traces = tracetest.Start(t)
	c.addAll(1)
	c.add(access.Gateway)
	c.ready()
	t.Run("sync", c.syncs)
	t.Run("event to SIEM", c.walkEvent)
	t.Run("command", c.walkCommand)
	t.Run("rule change", c.walkRule)
	t.Run("question", c.walkQuestion)
	t.Run("two gateways", c.twoGateways)
	t.Run("deleted endpoint", c.deletedEndpoint)
	t.Run("traces", c.oneTrace)
	t.Run("canary", c.canary)
	c.undisturbed()
	t.Run("refusals", c.refusals)
	for _, s := range c.services {
		s.terminate()
	}
}

// on returns a gateway's doors for a subtest.
func (c *cluster) on(t *testing.T, n int) *proc {
	p := c.doors()[n]
	return &proc{t: t, admin: p.admin, agent: p.agent, ops: p.ops, client: p.client}
}

// everywhere waits until every gateway knows an endpoint.
func (c *cluster) everywhere(t *testing.T, e endpoint) endpoint {
	t.Helper()
	for n := range c.doors() {
		p := c.on(t, n)
		eventually(t, "known to every gateway", func() error {
			_, err := p.getOK(e, "/key")
			return err
		})
	}
	return e
}

func (c *cluster) walkEvent(t *testing.T) {
	here, there := c.on(t, 0), c.on(t, 1)
	live := make(chan *nats.Msg, 16)
	siem := c.connect("siem")
	if _, err := siem.ChanSubscribe("edr.alerts.high.*", live); err != nil {
		t.Fatal(err)
	}
	if err := siem.Flush(); err != nil {
		t.Fatal(err)
	}
	here.data(http.MethodPost, "/rules", testRule)
	e := c.everywhere(t, here.enrol())
	now := time.Now().Add(-time.Minute)
	there.mustPost(e, plainEvent(1, now), badEvent(2, now.Add(time.Second)))
	var id string
	select {
	case m := <-live:
		id = m.Header.Get(nats.MsgIdHdr)
		if m.Subject != "edr.alerts.high."+e.UUID || m.Header.Get("Nightjar-Signatures") != "EvilImage" || !strings.Contains(string(m.Data), "evil.exe") || id == "" {
			t.Errorf("%s %v %s", m.Subject, m.Header, m.Data)
		}
	case <-time.After(deadline):
		t.Fatal("no alert at the SIEM")
	}
	var ids []string
	for _, m := range c.drain(t, siem) {
		if m.Subject() == "edr.alerts.high."+e.UUID {
			ids = append(ids, m.Headers().Get(nats.MsgIdHdr))
		}
	}
	if !slices.Equal(ids, []string{id}) {
		t.Errorf("durable consumer gives %q, live was %q", ids, id)
	}
	eventually(t, "stored and scored", func() error {
		var report struct {
			Count int `json:"alert-count"`
		}
		if err := json.Unmarshal(here.data(http.MethodGet, "/endpoints/"+e.UUID+"/report", ""), &report); err != nil {
			return err
		}
		if logs, alerts := len(here.events(e, "logs"+everything)), len(there.events(e, "alerts"+everything)); logs != 2 || alerts != 1 || report.Count != 1 {
			return fmt.Errorf("%d events, %d alerts, %d in the report", logs, alerts, report.Count)
		}
		return nil
	})
}

// drain reads what waits for the SIEM through its consumer, acknowledges it,
// and demands that nothing of it comes again.
func (c *cluster) drain(t *testing.T, nc *nats.Conn) (all []jetstream.Msg) {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	consumer, err := siemConsumer(t.Context(), js)
	if err != nil {
		t.Fatal(err)
	}
	for {
		batch, err := consumer.FetchNoWait(256)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for m := range batch.Messages() {
			n++
			all = append(all, m)
			if err := m.DoubleAck(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if n > 0 {
			continue
		}
		info, err := consumer.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if info.NumPending == 0 && info.NumAckPending == 0 {
			return all
		}
	}
}

func (c *cluster) walkCommand(t *testing.T) {
	here, there := c.on(t, 0), c.on(t, 1)
	e := c.everywhere(t, here.enrol())
	asked := here.command(e, `{"command-line":"collect --all","fetch-files":["/dump"]}`)
	got := there.fetchCommand(e)
	if got.UUID != asked.UUID || got.Name != "collect" {
		t.Fatalf("handed out is %+v", got)
	}
	dump := bytes.Repeat([]byte{0, 1, 2, 0xff}, 200<<10) // goes to the object store
	here.answer(e, strings.NewReader(`{"uuid":"`+got.UUID+`","name":"collect","args":[],"drop":[],"fetch":{"/dump":{"uuid":"`+got.Fetch["/dump"].UUID+
		`","name":"","data":"`+base64.StdEncoding.EncodeToString(dump)+`","error":""}},"stdout":"b2s=","stderr":null,"error":"","expect-json":false}`))
	if done := there.newest(e, "?wait=true"); !done.Completed || done.UUID != asked.UUID || string(done.Stdout) != `"b2s="` || !bytes.Equal(done.Fetch["/dump"].Data, dump) {
		t.Errorf("shown is completed %t, stdout %s, %d bytes", done.Completed, done.Stdout, len(done.Fetch["/dump"].Data))
	}
}

func (c *cluster) walkRule(t *testing.T) {
	here, there := c.on(t, 0), c.on(t, 1)
	e := c.everywhere(t, here.enrol())
	before, err := there.getOK(e, "/rules/sha256")
	if err != nil {
		t.Fatal(err)
	}
	if a, err := here.ask(http.MethodPost, "/rules", strings.Replace(testRule, "(?i:", "((?i:", 1)); err != nil || !strings.HasPrefix(a.Error, "Error loading rule: ") {
		t.Errorf("a rule that does not compile: %+v, %v", a, err)
	}
	here.data(http.MethodPost, "/rules", strings.NewReplacer("EvilImage", "AnyApp", "evil", "app").Replace(testRule))
	eventually(t, "agents see the rule on both gateways", func() error {
		for n := range c.doors() {
			sum, err := c.on(t, n).getOK(e, "/rules/sha256")
			if err != nil || sum == before {
				return fmt.Errorf("sum %s, %w", sum, err)
			}
			if text, err := c.on(t, n).getOK(e, "/rules"); err != nil || !strings.Contains(text, "AnyApp") {
				return fmt.Errorf("rules %s, %w", text, err)
			}
		}
		return nil
	})
	there.mustPost(e, plainEvent(3, time.Now().Add(-time.Minute)))
	eventually(t, "the new rule raises an alert", func() error {
		if list := here.events(e, "alerts"+everything); len(list) != 1 || !strings.Contains(string(list[0]), "AnyApp") {
			return fmt.Errorf("alerts %s", list)
		}
		return nil
	})
}

func (c *cluster) walkQuestion(t *testing.T) {
	here, there := c.on(t, 0), c.on(t, 1)
	e := c.everywhere(t, here.enrol())
	base := time.Now().Add(-time.Hour).Truncate(time.Second).UTC()
	const n = 3000
	var lines [][]byte
	for i := range n {
		lines = append(lines, plainEvent(i, base.Add(time.Duration(i)*time.Second)))
	}
	there.mustPost(e, lines...)
	eventually(t, "stored", func() error {
		if got := len(here.events(e, "logs"+everything)); got != n {
			return fmt.Errorf("%d of %d", got, n)
		}
		return nil
	})
	before := func(i int) string {
		return base.Add(time.Duration(i)*time.Second - time.Second/2).Format(time.RFC3339Nano)
	}
	for _, p := range []*proc{here, there} {
		list := p.events(e, "logs?start="+before(100)+"&stop="+before(2000)+"&skip=10&limit=1500")
		if len(list) != 1500 {
			t.Fatalf("%d events", len(list))
		}
		// A rule of another walk may have marked them by now.
		if !bytes.Contains(list[0], []byte(`"N":"110"`)) || !bytes.Contains(list[1499], []byte(`"N":"1609"`)) {
			t.Errorf("events from %s to %s", list[0], list[1499])
		}
		unknown := "00000000-1111-2222-3333-444444444444"
		if a, err := p.ask(http.MethodGet, "/endpoints/"+unknown+"/logs"+everything, ""); err != nil || a.Error != "Unknown endpoint: "+unknown {
			t.Errorf("unknown endpoint: %+v, %v", a, err)
		}
	}
}

// twoGateways lets both gateways serve the same agent at the same moment.
func (c *cluster) twoGateways(t *testing.T) {
	e := c.everywhere(t, c.on(t, 0).enrol())
	base := time.Now().Add(-time.Hour)
	const rounds, each = 10, 20
	var work sync.WaitGroup
	for round := range rounds {
		var lines [][]byte
		for i := range each {
			lines = append(lines, badEvent(round*each+i, base.Add(time.Duration(round*each+i)*time.Second)))
		}
		for n := range c.doors() {
			work.Go(func() {
				if code, err := c.on(t, n).post(e, true, lines...); err != nil || code != http.StatusOK {
					t.Errorf("POST /logs: %d %v", code, err)
				}
			})
		}
		work.Wait()
	}
	eventually(t, "each event stored and raised once", func() error {
		for n := range c.doors() {
			if logs, alerts := len(c.on(t, n).events(e, "logs"+everything)), len(c.on(t, n).events(e, "alerts"+everything)); logs != rounds*each || alerts != rounds*each {
				return fmt.Errorf("%d events, %d alerts, want %d", logs, alerts, rounds*each)
			}
		}
		return nil
	})
	ids := map[string]bool{}
	for _, m := range c.drain(t, c.connect("siem")) {
		if strings.HasSuffix(m.Subject(), e.UUID) {
			ids[m.Headers().Get(nats.MsgIdHdr)] = true
		}
	}
	if len(ids) != rounds*each {
		t.Errorf("%d alerts at the SIEM, want %d", len(ids), rounds*each)
	}

	const commands = 20
	want := map[string]int{}
	for range commands {
		want[c.on(t, 0).command(e, `{"command-line":"whoami"}`).UUID] = 1
	}
	var mu sync.Mutex
	handed := map[string]int{}
	eventually(t, "all commands are handed out", func() error {
		for n := range c.doors() {
			for range 4 {
				work.Go(func() {
					got, err := c.on(t, n).poll(e)
					mu.Lock()
					defer mu.Unlock()
					if err != nil {
						t.Errorf("poll: %v", err)
					} else if got != nil {
						handed[got.UUID]++
					}
				})
			}
		}
		work.Wait()
		if len(handed) < commands {
			return fmt.Errorf("%d of %d", len(handed), commands)
		}
		return nil
	})
	compare(t, "commands", handed, want)
}

// deletedEndpoint deletes an endpoint on one gateway. From the answer on both
// gateways refuse it. What it had sent stays readable.
func (c *cluster) deletedEndpoint(t *testing.T) {
	here, there := c.on(t, 0), c.on(t, 1)
	e := c.everywhere(t, here.enrol())
	line := badEvent(1, time.Now().Add(-time.Minute))
	there.mustPost(e, line)
	there.mustSend(e, artifact{Filename: "dump", Content: []byte("memory")})
	stored := func() error {
		for _, p := range []*proc{here, there} {
			if logs, alerts, files := p.events(e, "logs"+everything), p.events(e, "alerts"+everything), p.artifacts(e, ""); len(logs) != 1 || len(alerts) != 1 || len(files) != 1 {
				return fmt.Errorf("%d events, %d alerts, %d folders of artifacts", len(logs), len(alerts), len(files))
			}
			if _, content := p.raw("/endpoints/" + e.UUID + "/artifacts/" + processGUID + "/" + eventHash + "/dump?raw=true"); string(content) != "memory" {
				return fmt.Errorf("artifact is %q", content)
			}
		}
		return nil
	}
	eventually(t, "stored", stored)
	here.data(http.MethodDelete, "/endpoints/"+e.UUID, "")
	refused := func(p *proc) error {
		code, err := p.post(e, true, line)
		if err == nil && code != http.StatusForbidden {
			err = fmt.Errorf("a deleted endpoint is answered with %d", code)
		}
		return err
	}
	for range 10 {
		if err := errors.Join(refused(there), refused(here)); err != nil {
			t.Error(err)
		}
	}
	if err := stored(); err != nil {
		t.Errorf("of a deleted endpoint: %v", err)
	}
}
