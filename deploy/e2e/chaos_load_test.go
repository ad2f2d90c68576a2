//go:build chaos || powerloss

package e2e

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var chaosSeed = flag.Uint64("chaos.seed", 0, "seed of a crash test; 0 chooses one")

// chaos is a manager under load that ends and is started again at any time.
type chaos struct {
	t    *testing.T
	seed uint64
	// drops is the folder from which files are dropped.
	drops string
	// timeout is that of commands, in seconds. A command whose result comes a
	// minute later has expired, so it bounds how long the manager may be away.
	timeout int
	// now is the manager as it runs now, or did last.
	now atomic.Pointer[proc]
	// ending tells the load to begin nothing new.
	ending atomic.Bool
	load   sync.WaitGroup
	// stuck, unless it is nil, ends a manager that does not answer and says
	// where to read what it did.
	stuck func(p *proc) string
}

// begin chooses the seed.
func (c *chaos) begin(t *testing.T) {
	c.t, c.seed, c.drops, c.timeout = t, *chaosSeed, t.TempDir(), 1
	if c.seed == 0 {
		c.seed = rand.Uint64()
	}
	t.Logf("seed %d", c.seed)
}

// rand returns random numbers that depend on the seed and on who asks.
func (c *chaos) rand(who uint64) *rand.Rand { return rand.New(rand.NewPCG(c.seed, who)) }

// again repeats a request to whichever manager runs until it is answered, as
// clients do, and returns of how many attempts the outcome is not known.
func (c *chaos) again(what string, request func(p *proc) error) (unknown int) {
	for end := time.Now().Add(3 * deadline); ; unknown++ {
		p := c.now.Load()
		err := request(p)
		if err == nil {
			return unknown
		}
		if late, ok := errors.AsType[net.Error](err); ok && late.Timeout() && c.stuck != nil {
			c.t.Errorf("%s: %v; %s", what, err, c.stuck(p))
			return unknown
		}
		if time.Now().After(end) {
			c.t.Errorf("%s: never answered: %v", what, err)
			return unknown
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// workload is what all clients did and were told.
type workload struct {
	agents    []*chaosAgent
	rules     *chaosRules
	endpoints *chaosEndpoints
	desks     []*chaosDesk
	files     *chaosFiles
	clears    *chaosClears
	removals  *chaosRemovals
	lists     *chaosContainers
	history   *chaosHistory
}

// String says how much was done.
func (w *workload) String() string {
	events, commands := 0, 0
	for _, a := range w.agents {
		events += len(a.kept)
	}
	for _, d := range w.desks {
		commands += len(d.queued)
	}
	return fmt.Sprintf("%d events, %d changes of rules, %d of endpoints, %d of containers, %d commands, %d files, %d reports cleared, %d removals, %d days imported",
		events, w.rules.changes, w.endpoints.changes, w.lists.changes, commands, len(w.files.content), w.clears.cleared, w.removals.removed, w.history.days)
}

// chaosRule is the rule that makes alerts; it is never changed.
const chaosRule = testRule

// work starts the clients. The manager must be ready.
func (c *chaos) work() *workload {
	p := c.now.Load()
	p.data(http.MethodPost, "/rules", chaosRule+"\n"+ruleOf("Marked", 6, "", ""))
	w := &workload{rules: &chaosRules{live: map[string]int{}, staged: map[string]int{}}, endpoints: &chaosEndpoints{known: map[string]*endpoint{}}}
	for i := range 2 {
		a := newChaosAgent(p.enrol())
		w.agents = append(w.agents, a)
		c.client(10+uint64(i), a.step)
	}
	w.history = newChaosHistory(c, p.enrol())
	w.agents = append(w.agents, w.history.chaosAgent)
	c.client(90, w.history.step)
	w.lists = &chaosContainers{lines: map[string][]containerLine{}}
	c.client(100, w.lists.step)
	c.client(20, w.rules.step)
	c.client(30, w.endpoints.step)
	if err := os.WriteFile(filepath.Join(c.drops, "tool"), droppedTool, 0o600); err != nil {
		c.t.Fatal(err)
	}
	for i := range 2 {
		d := newChaosDesk(p.enrol())
		w.desks = append(w.desks, d)
		c.client(40+uint64(i), d.ask)
		c.client(50+uint64(i), d.execute)
	}
	w.files = &chaosFiles{e: p.enrol(), content: map[string][]byte{}}
	c.client(60, w.files.step)
	w.clears = &chaosClears{agent: newChaosAgent(p.enrol())}
	c.client(70, w.clears.step)
	w.removals = &chaosRemovals{agent: newChaosAgent(p.enrol())}
	c.client(110, w.removals.step)
	c.client(80, func(c *chaos, r *rand.Rand) { w.agents[r.IntN(len(w.agents))].look(c, r) })
	return w
}

// client runs one step after the other until the load is to end.
func (c *chaos) client(who uint64, step func(c *chaos, r *rand.Rand)) {
	r := c.rand(who)
	c.load.Go(func() {
		for !c.ending.Load() && !c.t.Failed() {
			step(c, r)
			time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
		}
	})
}

// told is ask for requests that succeed or fail with one of some errors,
// whose text is returned. Any other error is one to be repeated.
func (p *proc) told(method, path, body string, known ...string) (data json.RawMessage, failure string, err error) {
	a, err := p.ask(method, path, body)
	if err != nil || a.Error == "" {
		return a.Data, "", err
	}
	for _, k := range known {
		if strings.Contains(a.Error, k) {
			return nil, a.Error, nil
		}
	}
	return nil, "", errors.New(a.Error)
}

// chaosAgent is an endpoint that sends events.
type chaosAgent struct {
	e    endpoint
	base time.Time
	next int

	mu sync.Mutex
	// kept are the lines that are events, by number, and whether each is an
	// alert. They are noted before they are sent the first time.
	kept  map[int][]byte
	alert map[int]bool
	past  [][]byte
	// refused are the lines that are no events.
	refused map[string]bool
}

// notJSON begins the lines that are no events.
const notJSON = "not json "

func newChaosAgent(e endpoint) *chaosAgent {
	return &chaosAgent{e: e, base: time.Now().Add(-6 * time.Hour), kept: map[int][]byte{}, alert: map[int]bool{}, refused: map[string]bool{}}
}

// line makes a new line.
func (a *chaosAgent) line(r *rand.Rand) []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.next
	a.next++
	at := a.base.Add(time.Duration(n)*100*time.Millisecond + time.Duration(r.IntN(60))*time.Second)
	var line []byte
	switch r.IntN(20) {
	case 0, 1:
		line = badEvent(n, at)
		a.alert[n] = true
	case 2:
		line = markedEvent(n, at, "Marked")
		a.alert[n] = true
	case 3:
		line = fmt.Appendf(nil, `{"Event":{"EventData":{"N":"%d"}}}`, n) // without a time
	case 4:
		line = plainEvent(n, at.Add(-time.Duration(r.IntN(1000))*time.Hour)) // late
	case 5:
		line = fmt.Appendf(nil, `%s%d`, notJSON, n)
		a.refused[string(line)] = true
		return line
	default:
		line = plainEvent(n, at)
	}
	a.kept[n] = line
	return line
}

// step sends new lines, at times with some that were sent before.
func (a *chaosAgent) step(c *chaos, r *rand.Rand) {
	var lines [][]byte
	for range 1 + r.IntN(50) {
		lines = append(lines, a.line(r))
	}
	if len(a.past) > 0 && r.IntN(3) == 0 {
		from := r.IntN(len(a.past))
		lines = append(lines, a.past[from:min(len(a.past), from+1+r.IntN(40))]...)
		r.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
	}
	a.send(c, r, lines)
	a.past = append(a.past, lines...)
}

// send sends lines until they are acknowledged, each time cut differently. At
// times some go each alone and all at once, so that they are taken in together.
func (a *chaosAgent) send(c *chaos, r *rand.Rand, lines [][]byte) {
	if n := min(len(lines), 24); r.IntN(3) == 0 {
		var crowd sync.WaitGroup
		for _, line := range lines[:n] {
			own := rand.New(rand.NewPCG(r.Uint64(), 0))
			crowd.Go(func() { a.post(c, own, [][]byte{line}) })
		}
		crowd.Wait()
		lines = lines[n:]
	}
	a.post(c, r, lines)
}

// post sends lines until they are acknowledged.
func (a *chaosAgent) post(c *chaos, r *rand.Rand, lines [][]byte) {
	c.again("POST /logs", func(p *proc) error {
		rest := lines
		for len(rest) > 0 {
			n := len(rest)
			if r.IntN(2) == 0 {
				n = 1 + r.IntN(n)
			}
			code, err := p.post(a.e, r.IntN(2) == 0, rest[:n]...)
			if err != nil {
				return err
			}
			if code != http.StatusOK {
				return fmt.Errorf("status %d", code)
			}
			rest = rest[n:]
		}
		return nil
	})
}

// numbered is what is read of an event.
type numbered struct {
	Event struct {
		EventData struct{ N json.Number }
		GeneInfo  *struct{ Signature []string }
	}
}

// numbers returns the numbers of events, each of which must be there once.
func numbers(list []json.RawMessage) (map[int]json.RawMessage, error) {
	found := make(map[int]json.RawMessage, len(list))
	for _, raw := range list {
		var e numbered
		if err := json.Unmarshal(raw, &e); err != nil {
			return nil, err
		}
		n, err := e.Event.EventData.N.Int64()
		if err != nil {
			return nil, fmt.Errorf("%w in %s", err, raw)
		}
		if _, twice := found[int(n)]; twice {
			return nil, fmt.Errorf("event %d is there twice", n)
		}
		found[int(n)] = raw
	}
	return found, nil
}

// look asks for a random range: nothing is there twice or was never sent.
func (a *chaosAgent) look(c *chaos, r *rand.Rand) {
	what := []string{"logs", "alerts"}[r.IntN(2)]
	at := a.base.Add(time.Duration(r.IntN(7200)) * time.Second)
	query := fmt.Sprintf("?start=%s&stop=%s", at.UTC().Format(time.RFC3339), at.Add(time.Duration(r.IntN(3600))*time.Second).UTC().Format(time.RFC3339))
	if r.IntN(2) == 0 {
		query = fmt.Sprintf("?stop=9999-12-31T23:59:59Z&limit=%d&skip=%d", r.IntN(500), r.IntN(500))
	}
	answer, err := c.now.Load().ask(http.MethodGet, "/endpoints/"+a.e.UUID+"/"+what+query, "")
	if err != nil || answer.Error != "" {
		return // killed meanwhile; questions are not repeated
	}
	var list []json.RawMessage
	if err := json.Unmarshal(answer.Data, &list); err != nil {
		c.t.Errorf("%s%s: %v", what, query, err)
	}
	found, err := numbers(list)
	if err != nil {
		c.t.Errorf("%s%s: %v", what, query, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for n := range found {
		if a.kept[n] == nil || what == "alerts" && !a.alert[n] {
			c.t.Errorf("%s%s: event %d was never sent, or is no alert", what, query, n)
		}
	}
}

// chaosRules is an operator who changes rules.
type chaosRules struct {
	live map[string]int
	// staged has the version that a reload brings, -1 for a deletion.
	staged  map[string]int
	made    int
	changes int
}

// churned is a rule that matches nothing.
func churned(name string, version int) string {
	return fmt.Sprintf(`{"Name":%q,"Meta":{"EventIDs":[4242],"Channels":["none"],"Criticality":1},"Matches":["$a: Never = 'version-%d'"],"Condition":"$a"}`, name, version)
}

func (o *chaosRules) step(c *chaos, r *rand.Rand) {
	request := func(method, path, body string, known ...string) {
		unknown := 0
		c.again(method+" "+path, func(p *proc) error {
			_, failure, err := p.told(method, path, body, known...)
			if failure != "" && unknown == 0 {
				c.t.Errorf("%s %s: %s", method, path, failure)
			}
			unknown++
			return err
		})
		o.changes++
	}
	names := make([]string, 0, len(o.live))
	for i := range o.made {
		if name := fmt.Sprintf("Churn%d", i); o.live[name] > 0 {
			names = append(names, name)
		}
	}
	switch k := r.IntN(6); {
	case len(names) < 3 || k == 0 && len(names) < 20:
		name := fmt.Sprintf("Churn%d", o.made)
		o.made++
		// Repeated after an answer that got lost it exists already.
		request(http.MethodPost, "/rules", churned(name, 1), "already exists")
		o.live[name] = 1
	case k == 1 || k == 2:
		name := names[r.IntN(len(names))]
		version := max(o.live[name], o.staged[name]) + 1
		request(http.MethodPost, "/rules?update=true", churned(name, version))
		o.staged[name] = version
	case k == 3:
		name := names[r.IntN(len(names))]
		request(http.MethodDelete, "/rules?name="+name, "")
		o.staged[name] = -1
	case k == 4:
		request(http.MethodGet, "/rules/reload", "")
		for name, version := range o.staged {
			o.live[name] = version
			if version < 0 {
				delete(o.live, name)
			}
		}
		clear(o.staged)
	default:
		request(http.MethodGet, "/rules/save", "")
	}
	c.again("rules", func(p *proc) error {
		data, _, err := p.told(http.MethodGet, "/rules?name=^Churn", "")
		if err == nil {
			if err := o.compare(data); err != nil {
				c.t.Error(err)
			}
		}
		return err
	})
}

// compare holds a listing against what must be live.
func (o *chaosRules) compare(data json.RawMessage) error {
	var list []struct {
		Name    string
		Matches []string
	}
	if err := json.Unmarshal(data, &list); err != nil {
		return err
	}
	got, want := map[string]string{}, map[string]string{}
	for _, r := range list {
		got[r.Name] = strings.Join(r.Matches, "")
	}
	for name, version := range o.live {
		want[name] = fmt.Sprintf("$a: Never = 'version-%d'", version)
	}
	if a, b := fmt.Sprint(got), fmt.Sprint(want); a != b || len(list) != len(want) {
		return fmt.Errorf("live are the rules %s\nwant %s", a, b)
	}
	return nil
}

// chaosEndpoints is an operator who adds and deletes endpoints.
type chaosEndpoints struct {
	known map[string]*endpoint
	order []string
	// lost bounds the endpoints of whose creation no answer came.
	lost    int
	deleted []string
	changes int
}

func (o *chaosEndpoints) step(c *chaos, r *rand.Rand) {
	o.changes++
	switch k := r.IntN(5); {
	case len(o.order) < 2 || k == 0 && len(o.order) < 12:
		e := &endpoint{}
		o.lost += c.again("PUT /endpoints", func(p *proc) error {
			data, _, err := p.told(http.MethodPut, "/endpoints", "")
			if err == nil {
				err = json.Unmarshal(data, e)
			}
			return err
		})
		o.known[e.UUID] = e
		o.order = append(o.order, e.UUID)
	case k == 1:
		i := r.IntN(len(o.order))
		uuid := o.order[i]
		if r.IntN(2) == 0 {
			c.again("POST command", func(p *proc) error {
				_, _, err := p.told(http.MethodPost, "/endpoints/"+uuid+"/command", `{"command-line":"never"}`)
				return err
			})
		}
		tried := false
		c.again("DELETE endpoint", func(p *proc) error {
			_, failure, err := p.told(http.MethodDelete, "/endpoints/"+uuid, "", "Unknown endpoint")
			if failure != "" && !tried {
				c.t.Errorf("DELETE of endpoint %s: %s", uuid, failure)
			}
			tried = true
			return err
		})
		delete(o.known, uuid)
		o.order = append(o.order[:i], o.order[i+1:]...)
		o.deleted = append(o.deleted, uuid)
	case k == 2:
		uuid := o.order[r.IntN(len(o.order))]
		c.again("DELETE hostname", func(p *proc) error {
			_, _, err := p.told(http.MethodDelete, "/endpoints/"+uuid+"/hostname", "")
			return err
		})
		o.known[uuid].Hostname = ""
	default:
		e := o.known[o.order[r.IntN(len(o.order))]]
		c.again("contact", func(p *proc) error {
			code, err := p.post(*e, false, plainEvent(1, time.Now()))
			if err == nil && code != http.StatusOK {
				err = fmt.Errorf("status %d", code)
			}
			return err
		})
		e.Hostname = "host-" + e.UUID[:8]
	}
	c.again("endpoints", func(p *proc) error {
		data, _, err := p.told(http.MethodGet, "/endpoints", "")
		if err == nil {
			if err := o.compare(data); err != nil {
				c.t.Error(err)
			}
		}
		return err
	})
}

// compare holds a listing of all endpoints against what is known of those
// that this operator made.
func (o *chaosEndpoints) compare(data json.RawMessage) error {
	var list []endpoint
	if err := json.Unmarshal(data, &list); err != nil {
		return err
	}
	got := map[string]endpoint{}
	for _, e := range list {
		got[e.UUID] = e
	}
	for uuid, e := range o.known {
		if got[uuid].Key != e.Key || got[uuid].Hostname != e.Hostname {
			return fmt.Errorf("endpoint %+v is shown as %+v", *e, got[uuid])
		}
	}
	for _, uuid := range o.deleted {
		if _, there := got[uuid]; there {
			return fmt.Errorf("endpoint %s is there and was deleted", uuid)
		}
	}
	// Others are those of the other clients.
	if most := len(o.known) + o.lost + chaosOthers; len(list) > most {
		return fmt.Errorf("%d endpoints, want at most %d", len(list), most)
	}
	return nil
}

// chaosOthers is how many endpoints the other clients have.
const chaosOthers = 8
