package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
)

const (
	// sharedFirst is how many events of each agent are stored before anything
	// moves, sharedBatch how many it sends at once afterwards.
	sharedFirst, sharedBatch = 800, 20
	// sharedAlert is how many events there are to one alert.
	sharedAlert = 10
)

// sharing is agents that send events and operators who ask for them, while the
// replicas of log-ingest share the partitions anew.
type sharing struct {
	t      *testing.T
	door   *proc
	agents []*sharingAgent

	stopping          atomic.Bool
	work              sync.WaitGroup
	answers, refusals atomic.Int64
}

type sharingAgent struct {
	e    endpoint
	base time.Time
	// sent is how many events are acknowledged.
	sent atomic.Int64
}

// events makes some of the agent's events.
func (a *sharingAgent) events(from, n int) (lines [][]byte) {
	for i := from; i < from+n; i++ {
		at := a.base.Add(time.Duration(i) * 10 * time.Millisecond)
		if i%sharedAlert == 3 {
			lines = append(lines, badEvent(i, at))
		} else {
			lines = append(lines, plainEvent(i, at))
		}
	}
	return lines
}

// post sends events until they are acknowledged.
func (s *sharing) post(a *sharingAgent, n int) {
	lines := a.events(int(a.sent.Load()), n)
	for end := time.Now().Add(deadline); ; time.Sleep(50 * time.Millisecond) {
		code, err := s.door.post(a.e, true, lines...)
		if err == nil && code == http.StatusOK {
			a.sent.Add(int64(n))
			return
		}
		if time.Now().After(end) {
			s.t.Errorf("POST /logs: %d %v", code, err)
			return
		}
	}
}

// query returns the numbers of the events that are answered, in their order.
// refused tells that there was no answer, which is said with a reason.
func (s *sharing) query(e endpoint, what string) (numbers []int, refused bool, err error) {
	a, err := s.door.ask(http.MethodGet, "/endpoints/"+e.UUID+"/"+what+everything, "")
	if err != nil {
		return nil, true, nil // the connection was broken off
	}
	if a.Error != "" {
		for _, reason := range []string{"no replica of log-ingest answers for partition ", "no answer on edr.logs.", "has moved to another replica", "stopping"} {
			if strings.Contains(a.Error, reason) {
				return nil, true, nil
			}
		}
		return nil, false, errors.New(a.Error)
	}
	var list []struct {
		Event struct {
			EventData struct {
				N string
			}
		}
	}
	if err := json.Unmarshal(a.Data, &list); err != nil {
		return nil, false, err
	}
	for i := range list {
		n, err := strconv.Atoi(list[i].Event.EventData.N)
		if err != nil {
			return nil, false, err
		}
		numbers = append(numbers, n)
	}
	return numbers, false, nil
}

// whole returns an error unless numbers are the first ones of an agent in their
// order, each once, at least those that were stored before anything moved.
// Alerts are raised in any order, so that the last ones may have holes.
func whole(numbers []int, what string) error {
	want, step := 0, 1
	if what == "alerts" {
		want, step = 3, sharedAlert
	}
	for i, n := range numbers {
		if n != want && (what != "alerts" || want < sharedFirst || n < want) {
			return fmt.Errorf("number %d of %d is %d, want %d", i, len(numbers), n, want)
		}
		want = n + step
	}
	if want < sharedFirst {
		return fmt.Errorf("they end at %d, want %d at least", want, sharedFirst)
	}
	return nil
}

// ask asks for everything of one agent after the other.
func (s *sharing) ask(what string) {
	for i := 0; !s.stopping.Load(); i++ {
		time.Sleep(20 * time.Millisecond)
		numbers, refused, err := s.query(s.agents[i%len(s.agents)].e, what)
		if err == nil && !refused {
			err = whole(numbers, what)
		}
		switch {
		case err != nil:
			s.t.Errorf("%s of agent %d: %v", what, i%len(s.agents), err)
			return
		case refused:
			s.refusals.Add(1)
		default:
			s.answers.Add(1)
		}
	}
}

// answered waits until questions for each agent have been answered.
func (s *sharing) answered() {
	s.t.Helper()
	from := s.answers.Load()
	eventually(s.t, "questions are answered", func() error {
		if n := s.answers.Load() - from; n < int64(2*len(s.agents)) {
			return fmt.Errorf("%d answers, %d refusals", n, s.refusals.Load())
		}
		return nil
	})
}

// startSharing fills the store and lets everybody work.
func startSharing(t *testing.T, c *cluster, agents int) *sharing {
	t.Helper()
	s := &sharing{t: t, door: c.on(t, 0)}
	s.door.client.Timeout = 20 * time.Second
	s.door.data(http.MethodPost, "/rules", testRule)
	for range agents {
		a := &sharingAgent{e: c.everywhere(t, s.door.enrol()), base: time.Now().Add(-2 * time.Hour)}
		s.post(a, sharedFirst)
		s.agents = append(s.agents, a)
	}
	s.stored()
	for _, a := range s.agents {
		s.work.Go(func() {
			for !s.stopping.Load() {
				s.post(a, sharedBatch)
				time.Sleep(100 * time.Millisecond)
			}
		})
	}
	for _, what := range []string{"logs", "logs", "alerts"} {
		s.work.Go(func() { s.ask(what) })
	}
	return s
}

// stored waits until all that is acknowledged is stored once, and raised once.
func (s *sharing) stored() {
	s.t.Helper()
	for n, a := range s.agents {
		var want, marked []int
		for i := range int(a.sent.Load()) {
			want = append(want, i)
			if i%sharedAlert == 3 {
				marked = append(marked, i)
			}
		}
		for what, numbers := range map[string][]int{"logs": want, "alerts": marked} {
			eventually(s.t, what+" are stored", func() error {
				got, refused, err := s.query(a.e, what)
				if err == nil && !slices.Equal(got, numbers) {
					err = fmt.Errorf("agent %d: %d, want %d, refused %t", n, len(got), len(numbers), refused)
				}
				return err
			})
		}
	}
}

// shard is a replica of log-ingest.
type shard struct{ *service }

// addShard starts one more replica.
func (c *cluster) addShard(shards, ordinal int) shard {
	c.t.Helper()
	return shard{c.add(access.Ingest, "--merge-after", "50ms", "--shards", strconv.Itoa(shards), "--ordinal", strconv.Itoa(ordinal))}
}

// become starts the replica again with another share.
func (s shard) become(shards int) {
	s.t.Helper()
	s.terminate()
	s.args[len(s.args)-3] = strconv.Itoa(shards)
	s.run()
}

func (s shard) ready() {
	s.t.Helper()
	eventually(s.t, s.name+" ready", func() error { return answersOK(s.ops + "/readyz") })
}

// count returns how many partitions are in a state.
func (s shard) count(state string) float64 {
	s.t.Helper()
	p := &proc{t: s.t, ops: s.ops}
	return p.metric("nightjar_log_ingest_partitions", `state="`+state+`"`)
}

// moved waits until the replica owns all that it has.
func (s shard) moved() {
	s.t.Helper()
	s.ready()
	eventually(s.t, s.name+" has moved", func() error {
		if n := s.count("leaving") + s.count("dropping") + s.count("building"); n > 0 {
			return fmt.Errorf("%v partitions are to be moved", n)
		}
		return nil
	})
}

// killBuilding kills the replica while it builds partitions and has some of
// them, and starts it again.
func (s shard) killBuilding(view string) {
	s.t.Helper()
	p := &proc{t: s.t, ops: s.ops}
	eventually(s.t, s.name+" builds", func() error {
		if err := answersOK(s.ops + "/healthz"); err != nil {
			return err
		}
		if p.metric("nightjar_log_ingest_view_position", `view="`+view+`"`) == 0 {
			return errors.New("nothing is built yet")
		}
		return nil
	})
	s.t.Logf("%s is killed with %v partitions to be built", s.name, s.count("building"))
	s.kill()
	s.run()
}

// killLeaving kills the replica when it has just left partitions to others, and
// starts it again.
func (s shard) killLeaving() {
	s.t.Helper()
	eventually(s.t, s.name+" leaves partitions", func() error {
		if !strings.Contains(s.log(), "partitions are left to their owner") {
			return errors.New("none yet")
		}
		return nil
	})
	s.kill()
	s.run()
}

// TestPartitionsMove takes the replicas of log-ingest from one to two, to three
// and back to one, under load, as an operator does, and kills them amid it.
// Each answer is complete and has nothing twice, or is a refusal; in the end
// everything is there once.
func TestPartitionsMove(t *testing.T) {
	t.Parallel()
	c := startNATS(t, 1)
	for _, kind := range []string{access.Registry, access.Rules, access.Gateway} {
		c.add(kind)
	}
	zero := c.addShard(1, 0)
	c.ready()
	s := startSharing(t, c, 6)
	settled := func(shards ...shard) {
		t.Helper()
		for _, x := range shards {
			x.moved()
		}
		s.answered()
	}
	s.answered()

	one := c.addShard(2, 1)
	one.killBuilding("events")
	one.ready()
	zero.become(2)
	zero.killLeaving()
	settled(zero, one)

	two := c.addShard(3, 2)
	two.ready()
	one.become(3)
	one.killBuilding("events-1")
	one.ready()
	zero.become(3)
	settled(zero, one, two)

	two.become(1)
	two.ready()
	one.become(1)
	one.ready()
	zero.become(1)
	zero.killBuilding("events-1")
	settled(zero, one, two)
	before := s.refusals.Load()
	two.terminate()
	one.terminate()
	s.answered()
	if n := s.refusals.Load() - before; n > 0 {
		t.Errorf("%d questions refused while a replica that has everything was there", n)
	}

	s.stopping.Store(true)
	s.work.Wait()
	s.stored()
	if n := zero.count("answered"); n != 32 {
		t.Errorf("%v partitions are answered, want 32", n)
	}
	c.undisturbed("_INBOX_")
	t.Logf("%d answers, %d refusals", s.answers.Load(), s.refusals.Load())
}
