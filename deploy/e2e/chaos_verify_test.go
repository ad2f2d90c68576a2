//go:build chaos || powerloss

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sort"
	"testing"
	"time"
)

// all returns the endpoints that the clients have at the end.
func (w *workload) all() []endpoint {
	all := []endpoint{w.files.e, w.clears.agent.e, w.removals.agent.e}
	for _, a := range w.agents {
		all = append(all, a.e)
	}
	for _, d := range w.desks {
		all = append(all, d.e)
	}
	for _, uuid := range w.endpoints.order {
		all = append(all, *w.endpoints.known[uuid])
	}
	return all
}

// settled waits until everything acknowledged is there, once.
func (c *chaos) settled(p *proc, w *workload) {
	c.t.Helper()
	for _, a := range append([]*chaosAgent{w.clears.agent, w.removals.agent}, w.agents...) {
		wait(c.t, "events of "+a.e.UUID, func() error { return a.stored(p) })
	}
	for _, a := range append([]*chaosAgent{w.removals.agent}, w.agents...) {
		wait(c.t, "report of "+a.e.UUID, func() error {
			n, err := p.alertCount(a.e)
			if err == nil && n != len(a.alert) {
				err = fmt.Errorf("%d alerts, want %d", n, len(a.alert))
			}
			return err
		})
	}
	wait(c.t, "report that was cleared", func() error {
		n, err := p.alertCount(w.clears.agent.e)
		if n += w.clears.counted; err == nil && (n > len(w.clears.agent.alert) || w.clears.lost == 0 && n < len(w.clears.agent.alert)) {
			err = fmt.Errorf("%d alerts in all reports, %d of which may be lost, want %d", n, w.clears.lost, len(w.clears.agent.alert))
		}
		return err
	})
	if err := w.rules.compare(p.data(http.MethodGet, "/rules?name=^Churn", "")); err != nil {
		c.t.Error(err)
	}
	if err := w.endpoints.compare(p.data(http.MethodGet, "/endpoints", "")); err != nil {
		c.t.Error(err)
	}
	w.files.stored(c.t, p)
	w.lists.compare(c.t, p)
}

func (p *proc) alertCount(e endpoint) (int, error) {
	data, _, err := p.told(http.MethodGet, "/endpoints/"+e.UUID+"/report", "")
	if err != nil {
		return 0, err
	}
	return alertCount(data)
}

// stored tells whether all events of an agent are in the store, once and as
// they were sent, and all alerts.
func (a *chaosAgent) stored(p *proc) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, what := range []string{"logs", "alerts"} {
		data, _, err := p.told(http.MethodGet, "/endpoints/"+a.e.UUID+"/"+what+everything, "")
		if err != nil {
			return err
		}
		var list []json.RawMessage
		if err := json.Unmarshal(data, &list); err != nil {
			return err
		}
		found, err := numbers(list)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		for n, line := range a.kept {
			if what == "alerts" && !a.alert[n] {
				continue
			}
			got := found[n]
			if got == nil {
				return fmt.Errorf("%s: event %d of %d is missing, %d are there", what, n, len(a.kept), len(found))
			}
			if !a.alert[n] && !bytes.Equal(got, line) {
				return fmt.Errorf("%s: event %d is %s, want %s", what, n, got, line)
			}
			delete(found, n)
		}
		if len(found) > 0 {
			return fmt.Errorf("%s: %d events that were never sent or are no alerts", what, len(found))
		}
	}
	return nil
}

// stored compares all files with what was uploaded.
func (f *chaosFiles) stored(t *testing.T, p *proc) {
	t.Helper()
	var names, want []string
	for _, folder := range p.artifacts(f.e, "") {
		names = append(names, folder.Files...)
	}
	for name := range f.content {
		want = append(want, name)
	}
	sort.Strings(names)
	sort.Strings(want)
	if !slices.Equal(names, want) {
		t.Errorf("files are %v, want %v", names, want)
	}
	for name, content := range f.content {
		resp, got := p.raw("/endpoints/" + f.e.UUID + "/artifacts/" + processGUID + "/" + eventHash + "/" + name + "?raw=true")
		if resp.StatusCode != http.StatusOK || !bytes.Equal(got, content) {
			t.Errorf("file %s: %s, %d bytes, want %d", name, resp.Status, len(got), len(content))
		}
	}
}

// siem demands each alert once in the stream.
func (c *chaos) siem(p *proc, w *workload) {
	c.t.Helper()
	sequence := map[string]uint64{}
	delivered := map[uint64]bool{}
	for _, m := range w.removals.current(p, p.alerts()) {
		meta, err := m.Metadata()
		if err != nil {
			c.t.Fatal(err)
		}
		if delivered[meta.Sequence.Stream] {
			continue // delivered again
		}
		delivered[meta.Sequence.Stream] = true
		var e numbered
		if err := json.Unmarshal(m.Data(), &e); err != nil {
			c.t.Fatal(err)
		}
		id := m.Headers().Get("Nightjar-Endpoint") + " " + e.Event.EventData.N.String()
		if first, twice := sequence[id]; twice {
			c.t.Errorf("alert of event %s stands in the stream at %d and at %d", id, first, meta.Sequence.Stream)
		}
		sequence[id] = meta.Sequence.Stream
	}
	want := 0
	for _, a := range append([]*chaosAgent{w.clears.agent, w.removals.agent}, w.agents...) {
		want += len(a.alert)
		for n := range a.alert {
			if sequence[fmt.Sprintf("%s %d", a.e.UUID, n)] == 0 {
				c.t.Errorf("no alert of event %s %d in the stream", a.e.UUID, n)
			}
		}
	}
	if len(sequence) != want {
		c.t.Errorf("%d alerts in the stream, want %d", len(sequence), want)
	}
}

// wait is eventually for what must not end the test. A test that has failed
// waits for nothing more.
func wait(t *testing.T, what string, check func() error) {
	t.Helper()
	err := check()
	for end := time.Now().Add(deadline); err != nil && !t.Failed() && time.Now().Before(end); err = check() {
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
}
