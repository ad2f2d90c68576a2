//go:build cluster

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	loadAgents = 4
	batchSize  = 20
	// alertEvery is how many events there are to one alert.
	alertEvery = 10
)

// load is agents that send events and poll for commands, and an operator who
// queues commands, while processes are killed. Each repeats what was not
// acknowledged, as the real ones do.
type load struct {
	t      *testing.T
	doors  []*proc
	agents []endpoint
	base   time.Time

	stopping atomic.Bool
	work     sync.WaitGroup
	// batches are how many batches of each agent are acknowledged, sums are
	// of all.
	batches [loadAgents]atomic.Int64
	sum     atomic.Int64
	// refused counts 503 with Retry-After.
	refused atomic.Int64

	mu sync.Mutex
	// queued are the commands that the operator was told of, handed those
	// that an agent got, with how often.
	queued []string
	handed map[string]int
}

// startLoad enrols agents and lets everybody work.
func startLoad(t *testing.T, c *cluster) *load {
	t.Helper()
	l := &load{t: t, base: time.Now().Add(-2 * time.Hour), handed: map[string]int{}}
	for n := range c.doors() {
		d := c.on(t, n)
		d.client.Timeout = 20 * time.Second
		l.doors = append(l.doors, d)
	}
	l.doors[0].data(http.MethodPost, "/rules", testRule)
	for range loadAgents {
		l.agents = append(l.agents, c.everywhere(t, l.doors[0].enrol()))
	}
	for n := range l.agents {
		l.work.Go(func() { l.send(n) })
		l.work.Go(func() { l.poll(n) })
	}
	l.work.Go(l.queue)
	return l
}

// batch makes the events of a batch, always the same.
func (l *load) batch(b int) (lines [][]byte) {
	for i := range batchSize {
		n := b*batchSize + i
		at := l.base.Add(time.Duration(n) * 100 * time.Millisecond)
		if n%alertEvery == 3 {
			lines = append(lines, badEvent(n, at))
		} else {
			lines = append(lines, plainEvent(n, at))
		}
	}
	return lines
}

// send is an agent that sends batches, each until it is acknowledged.
func (l *load) send(n int) {
	for b := 0; !l.stopping.Load(); b++ {
		lines := l.batch(b)
		for try := n + b; !l.post(n, l.doors[try%len(l.doors)], lines); try++ {
			if l.t.Failed() {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		l.batches[n].Add(1)
		l.sum.Add(1)
		time.Sleep(20 * time.Millisecond)
	}
}

func (l *load) post(n int, door *proc, lines [][]byte) (acknowledged bool) {
	resp, err := door.client.Do(door.request(l.agents[n], http.MethodPost, "/logs", bytes.NewReader(append(bytes.Join(lines, []byte("\n")), '\n')), false))
	if err != nil {
		return false // the gateway is away
	}
	defer func() { _ = resp.Body.Close() }()
	switch {
	case resp.StatusCode == http.StatusOK:
		return true
	case resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") != "":
		l.refused.Add(1)
	default:
		l.t.Errorf("POST /logs: %s, Retry-After %q", resp.Status, resp.Header.Get("Retry-After"))
	}
	return false
}

// poll is an agent that asks every gateway for commands.
func (l *load) poll(n int) {
	for try := n; !l.stopping.Load(); try++ {
		if got, err := l.doors[try%len(l.doors)].poll(l.agents[n]); err == nil && got != nil {
			l.mu.Lock()
			l.handed[got.UUID]++
			l.mu.Unlock()
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// queue is an operator who queues commands.
func (l *load) queue() {
	for n := 0; !l.stopping.Load(); n++ {
		a, err := l.doors[n%len(l.doors)].ask(http.MethodPost, "/endpoints/"+l.agents[n%loadAgents].UUID+"/command", `{"command-line":"whoami"}`)
		var shown struct{ Command command }
		if err == nil && a.Error == "" {
			err = json.Unmarshal(a.Data, &shown)
			l.mu.Lock()
			l.queued = append(l.queued, shown.Command.UUID)
			l.mu.Unlock()
			if err != nil {
				l.t.Errorf("POST of a command: %v: %s", err, a.Data)
			}
		}
		time.Sleep(150 * time.Millisecond)
	}
}

// progress waits until some more batches of every agent are acknowledged.
func (l *load) progress() {
	l.t.Helper()
	var from [loadAgents]int64
	for n := range from {
		from[n] = l.batches[n].Load()
	}
	eventually(l.t, "events are acknowledged", func() error {
		for n := range from {
			if l.batches[n].Load() < from[n]+10 {
				return fmt.Errorf("agent %d: %d batches more, %d answers 503", n, l.batches[n].Load()-from[n], l.refused.Load())
			}
		}
		return nil
	})
}

// refusedSince waits until agents were refused again since there had been before
// refusals.
func (l *load) refusedSince(before int64) {
	l.t.Helper()
	eventually(l.t, "agents are refused", func() error {
		if l.refused.Load() == before {
			return errors.New("none was answered 503 with Retry-After")
		}
		return nil
	})
}

// verify ends the load, and demands that every event that was acknowledged is
// there once, every alert once, and that no command was handed out twice.
func (l *load) verify(c *cluster) {
	l.t.Helper()
	l.stopping.Store(true)
	l.work.Wait()
	c.ready()
	alerts := 0
	for n, e := range l.agents {
		var want, marked []int
		for i := range int(l.batches[n].Load()) * batchSize {
			want = append(want, i)
			if i%alertEvery == 3 {
				marked = append(marked, i)
			}
		}
		alerts += len(marked)
		for _, door := range l.doors {
			for what, numbers := range map[string][]int{"logs": want, "alerts": marked} {
				eventually(l.t, what, func() error {
					if got := numbersOf(l.t, door.events(e, what+everything)); !slices.Equal(got, numbers) {
						return fmt.Errorf("%d stored, want %d", len(got), len(numbers))
					}
					return nil
				})
			}
		}
	}
	nc := c.connect("siem")
	eachOnce(l.t, alerts, func() []jetstream.Msg { return c.drain(l.t, nc) })
	l.verifyCommands()
	// Who asked on a connection that is lost meanwhile is not answered on the
	// next one: the right to answer ends with the connection.
	c.undisturbed("_INBOX_")
	l.t.Logf("%d events, %d alerts, %d commands, %d answers 503", l.sum.Load()*batchSize, alerts, len(l.queued), l.refused.Load())
}

// numbersOf returns the numbers of events, sorted.
func numbersOf(t *testing.T, list []json.RawMessage) (numbers []int) {
	t.Helper()
	for _, raw := range list {
		var e struct {
			Event struct {
				EventData struct {
					N int `json:",string"`
				}
			}
		}
		if err := json.Unmarshal(raw, &e); err != nil {
			t.Fatalf("%v: %s", err, raw)
		}
		numbers = append(numbers, e.Event.EventData.N)
	}
	slices.Sort(numbers)
	return numbers
}

// verifyCommands takes what is left in the queues. A command that was queued
// is handed out once; one whose answer got lost on its way may be known to
// nobody, but is marked as sent.
func (l *load) verifyCommands() {
	l.t.Helper()
	states := map[string]string{}
	for n, e := range l.agents {
		eventually(l.t, "queue is empty", func() error {
			got, err := l.doors[n%len(l.doors)].poll(e)
			if err == nil && got != nil {
				l.handed[got.UUID]++
				err = errors.New("not yet")
			}
			return err
		})
		var history []struct{ UUID, State string }
		if err := json.Unmarshal(l.doors[0].data(http.MethodGet, "/endpoints/"+e.UUID+"/commands?limit=100000", ""), &history); err != nil {
			l.t.Fatal(err)
		}
		for _, h := range history {
			states[h.UUID] = h.State
		}
	}
	for uuid, n := range l.handed {
		if n != 1 {
			l.t.Errorf("command %s was handed out %d times", uuid, n)
		}
	}
	for _, uuid := range l.queued {
		if states[uuid] == "" || states[uuid] == "queued" {
			l.t.Errorf("command %s is %q after all were polled", uuid, states[uuid])
		}
	}
	if len(l.queued) == 0 || len(l.handed) == 0 {
		l.t.Errorf("%d commands queued, %d handed out", len(l.queued), len(l.handed))
	}
}

// replicated demands that every stream and bucket has a number of copies.
func (c *cluster) replicated(t *testing.T, copies int) {
	t.Helper()
	for user, names := range map[string][]string{
		"api-gateway": {"INTAKE", "EVENTS", "DEADLETTER", "AUDIT", "KV_access"}, "rule-engine": {"ALERTS", "KV_rules", "OBJ_containers"},
		"endpoint-registry": {"KV_endpoints", "KV_removed"}, "command-dispatch": {"KV_commands", "OBJ_files"}, "log-ingest": {"OBJ_artifacts"}, "report-scorer": {"KV_reports"},
	} {
		nc := c.connect(user)
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), deadline)
		for _, name := range names {
			if s, err := js.Stream(ctx, name); err != nil || s.CachedInfo().Config.Replicas != copies || len(s.CachedInfo().Cluster.Replicas) != copies-1 {
				t.Errorf("%s is not kept in %d copies: %v", name, copies, err)
			}
		}
		cancel()
		nc.Close()
	}
}
