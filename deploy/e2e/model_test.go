//go:build chaos

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/nightjar-edr/nightjar/pkg/failpoint"
)

// TestModel holds a manager against a model of it through random sequences of
// everything that its APIs can do, with crashes and restarts between and
// within requests. A sequence that fails is kept by rapid in testdata/rapid,
// and is repeated first from then on.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			rt.Fatal(err)
		}
		m := &model{t: t, dir: dir, rules: chaosRules{live: map[string]int{}, staged: map[string]int{}}}
		defer m.end()
		m.start(rt)
		m.ask(rt, http.MethodPost, "/rules", chaosRule, "already exists") // or it was killed before the answer
		m.create(rt)
		rt.Repeat(map[string]func(*rapid.T){
			"create endpoint":  m.create,
			"delete endpoint":  m.remove,
			"release hostname": m.release,
			"post events":      m.post,
			"repeat events":    m.repeat,
			"add rule":         m.addRule,
			"update rule":      m.updateRule,
			"delete rule":      m.deleteRule,
			"reload":           m.reload,
			"queue command":    m.queue,
			"poll":             m.poll,
			"cancel":           m.cancel,
			"result":           m.result,
			"upload":           m.upload,
			"read report":      m.readReport,
			"clear report":     m.clearReport,
			"remove stored":    m.removeStored,
			"query":            m.query,
			"kill":             m.kill,
			"stop":             m.stop,
			"":                 m.check,
		})
		for _, e := range m.endpoints {
			m.compareAll(rt, e)
		}
	})
}

// model is what the manager must look like, written down in the simplest way.
type model struct {
	t   *testing.T
	dir string
	p   *proc

	endpoints []*modelEndpoint
	deleted   []string
	// lost bounds the endpoints of whose creation no answer came.
	lost   int
	rules  chaosRules
	events int
}

type modelEndpoint struct {
	endpoint
	events   []*modelEvent
	commands []*modelCommand // in the order of their queueing
	files    map[string][]byte
	// reported is how many alerts came since the report was cleared.
	reported int
}

type modelEvent struct {
	n     int
	at    time.Time
	line  []byte
	alert bool
}

type modelCommand struct{ uuid, state, stdout string }

// start starts the manager, at times with a failpoint that will end it.
func (m *model) start(rt *rapid.T) {
	var env []string
	if rapid.IntRange(0, 2).Draw(rt, "armed") == 0 {
		point := rapid.SampledFrom(failpoint.List()).Draw(rt, "failpoint")
		env = append(env, fmt.Sprintf("NIGHTJAR_FAILPOINTS=%s=kill@%d", point, rapid.IntRange(1, 4).Draw(rt, "hit")))
	}
	for {
		m.p = &proc{t: m.t, dir: m.dir, args: []string{"--tls", "off", "--merge-after", "50ms"}, env: env}
		err := m.p.launch()
		for err == nil && !m.dead() {
			if err = m.p.ready(); err == nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
			err = nil
		}
		if m.p.exited == nil || !m.p.failed() {
			rt.Fatalf("the manager does not start: %v\n%s", err, m.p.log())
		}
		env = nil // the failpoint was on the way
	}
}

// dead tells whether the manager has ended.
func (m *model) dead() bool {
	select {
	case <-m.p.exited:
		return true
	default:
		return false
	}
}

func (m *model) end() {
	if m.p != nil && m.p.exited != nil {
		_ = m.p.cmd.Process.Kill()
		<-m.p.exited
	}
}

// do repeats a request until it is answered. The manager may end meanwhile,
// at a failpoint, and is started again. It returns of how many attempts the
// outcome is not known.
func (m *model) do(rt *rapid.T, what string, request func(p *proc) error) (unknown int) {
	for end := time.Now().Add(deadline); ; unknown++ {
		err := request(m.p)
		if err == nil {
			return unknown
		}
		if time.Now().After(end) {
			rt.Fatalf("%s: %v", what, err)
		}
		if m.p.failed() {
			<-m.p.exited
			m.start(rt)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// ask makes an admin request. One of the known errors is accepted when an
// earlier attempt may have had its effect; it is told by ok.
func (m *model) ask(rt *rapid.T, method, path, body string, known ...string) (data json.RawMessage, ok bool, unknown int) {
	tried := false
	unknown = m.do(rt, method+" "+path, func(p *proc) error {
		d, failure, err := p.told(method, path, body, known...)
		if failure != "" && !tried {
			rt.Fatalf("%s %s: %s", method, path, failure)
		}
		data, ok, tried = d, failure == "", true
		return err
	})
	return data, ok, unknown
}

func (m *model) must(rt *rapid.T, method, path, body string) json.RawMessage {
	data, _, _ := m.ask(rt, method, path, body)
	return data
}

func decodeInto(rt *rapid.T, data json.RawMessage, into any) {
	if err := json.Unmarshal(data, into); err != nil {
		rt.Fatalf("%v in %.500s", err, data)
	}
}

// settle waits until a check passes.
func (m *model) settle(rt *rapid.T, what string, check func(p *proc) error) {
	m.do(rt, what, check)
}

func (m *model) pick(rt *rapid.T) *modelEndpoint {
	if len(m.endpoints) == 0 {
		rt.Skip("no endpoint")
	}
	return rapid.SampledFrom(m.endpoints).Draw(rt, "endpoint")
}

func (m *model) create(rt *rapid.T) {
	if len(m.endpoints) == 4 {
		rt.Skip("enough endpoints")
	}
	data, _, unknown := m.ask(rt, http.MethodPut, "/endpoints", "")
	e := &modelEndpoint{files: map[string][]byte{}}
	decodeInto(rt, data, &e.endpoint)
	m.lost += unknown
	m.endpoints = append(m.endpoints, e)
}

func (m *model) remove(rt *rapid.T) {
	if len(m.endpoints) < 2 {
		rt.Skip("no endpoint to spare")
	}
	e := m.pick(rt)
	m.ask(rt, http.MethodDelete, "/endpoints/"+e.UUID, "", "Unknown endpoint")
	m.endpoints = slices.DeleteFunc(m.endpoints, func(x *modelEndpoint) bool { return x == e })
	m.deleted = append(m.deleted, e.UUID)
}

func (m *model) release(rt *rapid.T) {
	e := m.pick(rt)
	m.must(rt, http.MethodDelete, "/endpoints/"+e.UUID+"/hostname", "")
	e.Hostname = ""
}

// contact notes that an agent was answered.
func (e *modelEndpoint) contact() { e.Hostname = "host-" + e.UUID[:8] }

func (m *model) send(rt *rapid.T, e *modelEndpoint, lines [][]byte) {
	m.do(rt, "POST /logs", func(p *proc) error {
		code, err := p.post(e.endpoint, len(lines)%2 == 0, lines...)
		if err == nil && code != http.StatusOK {
			err = fmt.Errorf("status %d", code)
		}
		return err
	})
	e.contact()
}

func (m *model) post(rt *rapid.T) {
	e := m.pick(rt)
	var lines [][]byte
	for _, kind := range rapid.SliceOfN(rapid.SampledFrom([]string{"plain", "bad", "late", "broken"}), 1, 20).Draw(rt, "events") {
		n := m.events
		m.events++
		at := time.Now().Add(-time.Hour).Truncate(time.Microsecond).Add(time.Duration(n) * time.Microsecond)
		if kind == "late" {
			at = at.Add(-time.Duration(n%50) * time.Hour)
		}
		ev := &modelEvent{n: n, at: at, line: plainEvent(n, at), alert: kind == "bad"}
		switch kind {
		case "bad":
			ev.line = badEvent(n, at)
			e.reported++
		case "broken":
			lines = append(lines, fmt.Appendf(nil, `{"Event":%d`, n))
			continue
		}
		lines = append(lines, ev.line)
		e.events = append(e.events, ev)
	}
	m.send(rt, e, lines)
	slices.SortFunc(e.events, func(a, b *modelEvent) int { return a.at.Compare(b.at) })
}

func (m *model) repeat(rt *rapid.T) {
	e := m.pick(rt)
	if len(e.events) == 0 {
		rt.Skip("no events")
	}
	from := rapid.IntRange(0, len(e.events)-1).Draw(rt, "from")
	var lines [][]byte
	for _, ev := range e.events[from:min(len(e.events), from+10)] {
		lines = append(lines, ev.line)
	}
	m.send(rt, e, lines)
}

func (m *model) liveRule(rt *rapid.T) string {
	names := make([]string, 0, len(m.rules.live))
	for name := range m.rules.live {
		names = append(names, name)
	}
	if len(names) == 0 {
		rt.Skip("no rules")
	}
	slices.Sort(names)
	return rapid.SampledFrom(names).Draw(rt, "rule")
}

func (m *model) addRule(rt *rapid.T) {
	name := fmt.Sprintf("Churn%d", m.rules.made)
	m.rules.made++
	m.ask(rt, http.MethodPost, "/rules", churned(name, 1), "already exists")
	m.rules.live[name] = 1
}

func (m *model) updateRule(rt *rapid.T) {
	name := m.liveRule(rt)
	m.rules.changes++
	m.must(rt, http.MethodPost, "/rules?update=true", churned(name, 1+m.rules.changes))
	m.rules.staged[name] = 1 + m.rules.changes
}

func (m *model) deleteRule(rt *rapid.T) {
	name := m.liveRule(rt)
	m.must(rt, http.MethodDelete, "/rules?name="+name, "")
	m.rules.staged[name] = -1
}

func (m *model) reload(rt *rapid.T) {
	m.must(rt, http.MethodGet, "/rules/reload", "")
	for name, version := range m.rules.staged {
		if m.rules.live[name] = version; version < 0 {
			delete(m.rules.live, name)
		}
	}
	clear(m.rules.staged)
}

func (m *model) upload(rt *rapid.T) {
	e := m.pick(rt)
	name := fmt.Sprintf("file%d", len(e.files))
	content := bytes.Repeat([]byte(name), rapid.IntRange(0, 80_000).Draw(rt, "size"))
	parts := rapid.IntRange(1, 3).Draw(rt, "parts")
	for n := range parts {
		a := artifact{Filename: name, GUID: "{" + processGUID + "}", EventHash: eventHash, Content: content[n*len(content)/parts : (n+1)*len(content)/parts]}
		if parts > 1 {
			a.Chunk, a.Total = n+1, parts
		}
		body, err := json.Marshal(a)
		if err != nil {
			rt.Fatal(err)
		}
		m.do(rt, "upload", func(p *proc) error { return p.agentPost(e.endpoint, "/upload/dumps", body) })
	}
	e.contact()
	e.files[name] = content
}

func (m *model) kill(rt *rapid.T) {
	_ = m.p.cmd.Process.Kill()
	<-m.p.exited
	m.start(rt)
}

func (m *model) stop(rt *rapid.T) {
	if err := m.p.cmd.Process.Signal(os.Interrupt); err != nil && !m.dead() {
		rt.Fatal(err)
	}
	select {
	case <-m.p.exited:
	case <-time.After(25 * time.Second):
		rt.Fatal("still running 25s after it was told to stop")
	}
	if m.p.exit != nil && !m.p.failed() {
		rt.Fatalf("the manager stopped with %v", m.p.exit)
	}
	m.start(rt)
}

// check compares what costs little after each step.
func (m *model) check(rt *rapid.T) {
	if err := m.rules.compare(m.must(rt, http.MethodGet, "/rules?name=^Churn", "")); err != nil {
		rt.Fatal(err)
	}
	var list []endpoint
	decodeInto(rt, m.must(rt, http.MethodGet, "/endpoints", ""), &list)
	at := 0
	for _, got := range list {
		if slices.Contains(m.deleted, got.UUID) {
			rt.Fatalf("endpoint %s is there and was deleted", got.UUID)
		}
		if at < len(m.endpoints) && m.endpoints[at].UUID == got.UUID {
			if want := m.endpoints[at].endpoint; got.Key != want.Key || got.Hostname != want.Hostname {
				rt.Fatalf("endpoint is %+v, want %+v", got, want)
			}
			at++
		}
	}
	if at < len(m.endpoints) || len(list) > len(m.endpoints)+m.lost {
		rt.Fatalf("%d endpoints, %d of them known, want %d and at most %d more", len(list), at, len(m.endpoints), m.lost)
	}
}

// compareAll compares everything that the API shows of an endpoint.
func (m *model) compareAll(rt *rapid.T, e *modelEndpoint) {
	m.stored(rt, e)
	m.report(rt, e)
	m.commands(rt, e)
	var names, want []string
	var folders []folder
	decodeInto(rt, m.must(rt, http.MethodGet, "/endpoints/"+e.UUID+"/artifacts", ""), &folders)
	for _, f := range folders {
		names = append(names, f.Files...)
	}
	for name, content := range e.files {
		want = append(want, name)
		data := m.must(rt, http.MethodGet, "/endpoints/"+e.UUID+"/artifacts/"+processGUID+"/"+eventHash+"/"+name, "")
		var got []byte
		if decodeInto(rt, data, &got); !bytes.Equal(got, content) {
			rt.Fatalf("file %s has %d bytes, want %d", name, len(got), len(content))
		}
	}
	slices.Sort(names)
	slices.Sort(want)
	if strings.Join(names, " ") != strings.Join(want, " ") {
		rt.Fatalf("files are %v, want %v", names, want)
	}
}
