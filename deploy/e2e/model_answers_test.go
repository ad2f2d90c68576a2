//go:build chaos

package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"pgregory.net/rapid"
)

// commands compares an endpoint's commands with the model, and takes those
// over of whose queueing no answer came.
func (m *model) commands(rt *rapid.T, e *modelEndpoint) {
	var list []struct{ UUID, State string }
	decodeInto(rt, m.must(rt, http.MethodGet, "/endpoints/"+e.UUID+"/commands?limit=1000", ""), &list)
	if len(list) != len(e.commands) {
		rt.Fatalf("%d commands, want %d: %v", len(list), len(e.commands), list)
	}
	for i, want := range e.commands {
		if got := list[len(list)-1-i]; got.UUID != want.uuid || got.State != want.state {
			rt.Fatalf("command %d is %s %s, want %s %s", i, got.UUID, got.State, want.uuid, want.state)
		}
		if want.state == "completed" {
			var c command
			decodeInto(rt, m.must(rt, http.MethodGet, "/endpoints/"+e.UUID+"/commands/"+want.uuid, ""), &c)
			if string(c.Stdout) != fmt.Sprintf("%q", base64.StdEncoding.EncodeToString([]byte(want.stdout))) || !c.Completed {
				rt.Fatalf("command %s has stdout %s, want %q", want.uuid, c.Stdout, want.stdout)
			}
		}
	}
}

func (m *model) queue(rt *rapid.T) {
	e := m.pick(rt)
	data, _, unknown := m.ask(rt, http.MethodPost, "/endpoints/"+e.UUID+"/command", `{"command-line":"x"}`)
	var shown struct{ Command command }
	decodeInto(rt, data, &shown)
	var list []struct{ UUID string }
	decodeInto(rt, m.must(rt, http.MethodGet, "/endpoints/"+e.UUID+"/commands?limit=1000", ""), &list)
	// Each attempt without an answer may have queued one before.
	fresh := len(list) - len(e.commands)
	if fresh < 1 || fresh > 1+unknown {
		rt.Fatalf("%d commands more, want 1 and at most %d that broke off", fresh, unknown)
	}
	for i := fresh - 1; i >= 0; i-- {
		e.commands = append(e.commands, &modelCommand{uuid: list[i].UUID, state: "queued"})
	}
	if list[0].UUID != shown.Command.UUID {
		rt.Fatalf("the newest command is %s, want %s", list[0].UUID, shown.Command.UUID)
	}
}

// first returns an endpoint's oldest command in a state, nil without one.
func (e *modelEndpoint) first(state string) *modelCommand {
	for _, c := range e.commands {
		if c.state == state {
			return c
		}
	}
	return nil
}

func (m *model) poll(rt *rapid.T) {
	e := m.pick(rt)
	want := e.first("queued")
	got, err := m.p.poll(e.endpoint)
	if err != nil {
		// It may have been handed out, to nobody.
		m.settle(rt, "commands", func(p *proc) error {
			if want == nil {
				return p.ready()
			}
			data, _, err := p.told(http.MethodGet, "/endpoints/"+e.UUID+"/commands?limit=1000", "")
			var list []struct{ UUID, State string }
			if err == nil {
				err = json.Unmarshal(data, &list)
			}
			for _, l := range list {
				if l.UUID == want.uuid {
					if l.State != "queued" && l.State != "sent" {
						rt.Fatalf("command %s is %s after a poll that broke off", l.UUID, l.State)
					}
					want.state = l.State
				}
			}
			return err
		})
		// The request may or may not have bound the hostname.
		m.settle(rt, "endpoint", func(p *proc) error {
			data, _, err := p.told(http.MethodGet, "/endpoints/"+e.UUID, "")
			var shown endpoint
			if err == nil {
				err = json.Unmarshal(data, &shown)
			}
			if err == nil && shown.Hostname != "" {
				e.contact()
			}
			return err
		})
		return
	}
	e.contact()
	switch {
	case want == nil && got != nil:
		rt.Fatalf("handed out was %s, want nothing", got.UUID)
	case want != nil && (got == nil || got.UUID != want.uuid):
		rt.Fatalf("handed out was %+v, want %s", got, want.uuid)
	case want != nil:
		want.state = "sent"
	}
}

func (m *model) result(rt *rapid.T) {
	e := m.pick(rt)
	c := e.first("sent")
	if c == nil {
		rt.Skip("nothing to answer")
	}
	size := rapid.SampledFrom([]int{0, 10, 400_000}).Draw(rt, "size")
	c.state, c.stdout = "completed", string(make([]byte, size))
	body := fmt.Appendf(nil, `{"uuid":%q,"name":"x","args":[],"fetch":{},"stdout":%q,"stderr":null,"error":""}`, c.uuid, base64.StdEncoding.EncodeToString([]byte(c.stdout)))
	m.do(rt, "POST /commands", func(p *proc) error { return p.agentPost(e.endpoint, "/commands", body) })
	e.contact()
}

func (m *model) cancel(rt *rapid.T) {
	e := m.pick(rt)
	c := e.first("queued")
	if c == nil {
		rt.Skip("nothing to cancel")
	}
	m.ask(rt, http.MethodDelete, "/endpoints/"+e.UUID+"/command/"+c.uuid, "", "is cancelled already")
	c.state = "cancelled"
}

// stored waits until every event and alert is there, once.
func (m *model) stored(rt *rapid.T, e *modelEndpoint) {
	for _, what := range []string{"logs", "alerts"} {
		want := e.within(what, time.Time{}, time.Time{})
		m.settle(rt, what, func(p *proc) error {
			data, _, err := p.told(http.MethodGet, "/endpoints/"+e.UUID+"/"+what+everything, "")
			if err != nil {
				return err
			}
			return sameEvents(data, want)
		})
	}
}

// within returns the numbers of events, in the order of their time, within
// two times that do not belong to the range.
func (e *modelEndpoint) within(what string, start, stop time.Time) []int {
	numbers := []int{}
	for _, ev := range e.events {
		if (what == "logs" || ev.alert) && (start.IsZero() || ev.at.After(start)) && (stop.IsZero() || ev.at.Before(stop)) {
			numbers = append(numbers, ev.n)
		}
	}
	return numbers
}

// sameEvents compares an answer's events with the numbers of those wanted.
func sameEvents(data json.RawMessage, want []int) error {
	var list []numbered
	if err := json.Unmarshal(data, &list); err != nil {
		return err
	}
	got := []int{}
	for _, e := range list {
		n, err := e.Event.EventData.N.Int64()
		if err != nil {
			return err
		}
		got = append(got, int(n))
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		return fmt.Errorf("events %v, want %v", got, want)
	}
	return nil
}

// query asks for a range of events once all are there.
func (m *model) query(rt *rapid.T) {
	e := m.pick(rt)
	m.stored(rt, e)
	if len(e.events) == 0 {
		return
	}
	what := rapid.SampledFrom([]string{"logs", "alerts"}).Draw(rt, "what")
	edge := func(name string) time.Time { return e.events[rapid.IntRange(0, len(e.events)-1).Draw(rt, name)].at }
	start, stop := edge("start"), edge("stop")
	if stop.Before(start) {
		start, stop = stop, start
	}
	skip, limit := rapid.IntRange(0, 10).Draw(rt, "skip"), rapid.IntRange(0, 30).Draw(rt, "limit")
	want := e.within(what, start, stop)
	want = want[min(skip, len(want)):]
	want = want[:min(limit, len(want))]
	path := fmt.Sprintf("/endpoints/%s/%s?start=%s&stop=%s&skip=%d&limit=%d", e.UUID, what,
		start.UTC().Format(time.RFC3339Nano), stop.UTC().Format(time.RFC3339Nano), skip, limit)
	if err := sameEvents(m.must(rt, http.MethodGet, path, ""), want); err != nil {
		rt.Fatalf("GET %s: %v", path, err)
	}
}

// report waits until an endpoint's report has all alerts.
func (m *model) report(rt *rapid.T, e *modelEndpoint) {
	m.settle(rt, "report", func(p *proc) error {
		n, err := p.alertCount(e.endpoint)
		if err == nil && n != e.reported {
			err = fmt.Errorf("%d alerts in the report, want %d", n, e.reported)
		}
		return err
	})
}

func (m *model) readReport(rt *rapid.T) { m.report(rt, m.pick(rt)) }

func (m *model) clearReport(rt *rapid.T) {
	e := m.pick(rt)
	m.report(rt, e)
	data, _, unknown := m.ask(rt, http.MethodDelete, "/endpoints/"+e.UUID+"/report", "")
	n, err := alertCount(data)
	if err != nil || n != e.reported && (unknown == 0 || n != 0) {
		rt.Fatalf("the cleared report has %d alerts, want %d: %v", n, e.reported, err)
	}
	e.reported = 0
}

// removeStored removes what an endpoint has stored; what is sent again
// afterwards is new.
func (m *model) removeStored(rt *rapid.T) {
	e := m.pick(rt)
	m.ask(rt, http.MethodDelete, "/endpoints/"+e.UUID+"/stored", "")
	e.events, e.files, e.reported = nil, map[string][]byte{}, 0
	m.compareAll(rt, e)
}
