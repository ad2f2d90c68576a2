package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/tracing/tracetest"
)

// hop is a span and the one that it must be a part of.
type hop struct{ service, name, within string }

// oneTrace demands that what an event goes through, from the agent's POST to
// the alert and the views of both, is one trace, and so is what a command goes
// through; that both hold nothing secret; and that a SIEM is told which one.
func (c *cluster) oneTrace(t *testing.T) {
	here, there := c.on(t, 0), c.on(t, 1)
	here.data(http.MethodPost, "/rules?update=true", testRule)
	here.data(http.MethodGet, "/rules/reload", "")
	e := c.everywhere(t, here.enrol())
	alerts := make(chan *nats.Msg, 4)
	siem := c.connect("siem")
	if _, err := siem.ChanSubscribe("edr.alerts.*."+e.UUID, alerts); err != nil {
		t.Fatal(err)
	}
	if err := siem.Flush(); err != nil {
		t.Fatal(err)
	}
	there.mustPost(e, badEvent(1, time.Now().Add(-time.Minute)))
	var told string
	select {
	case m := <-alerts:
		told = m.Header.Get("traceparent")
	case <-time.After(deadline):
		t.Fatal("no alert at the SIEM")
	}
	spans := c.trace(t, "POST /logs", e, []hop{
		{access.Gateway, "POST /logs", ""},
		{access.Gateway, "publish EVENTS", "POST /logs"},
		{access.Ingest, "fold EVENTS", "publish EVENTS"},
		{access.Rules, "detect", "publish EVENTS"},
		{access.Rules, "publish ALERTS", "detect"},
		{access.Rules, "fold ALERTS", "detect"},
		{access.Ingest, "fold ALERTS", "detect"},
		{access.Scorer, "fold ALERTS", "detect"},
	})
	if want := "00-" + spans[0].Trace + "-"; !strings.HasPrefix(told, want) || !strings.HasSuffix(told, "-01") {
		t.Errorf("the SIEM is told %s, want %s", told, want)
	}

	asked := here.command(e, `{"command-line":"whoami --secret"}`)
	got := there.fetchCommand(e)
	there.answer(e, strings.NewReader(`{"uuid":"`+got.UUID+`","name":"whoami","args":[],"drop":[],"fetch":{},"stdout":"c2VjcmV0","stderr":null,"error":"","expect-json":false}`))
	spans = append(spans, c.trace(t, "POST /endpoints/:uuid/command", e, []hop{
		{access.Gateway, "POST /endpoints/:uuid/command", ""},
		{access.Gateway, "ask edr.commands.queue", "POST /endpoints/:uuid/command"},
		{access.Commands, "answer edr.commands.queue", "ask edr.commands.queue"},
		{access.Commands, "command", "answer edr.commands.queue"},
	})...)
	for _, s := range spans {
		for _, secret := range []string{e.Key, adminKey, "secret", "evil.exe", asked.UUID} {
			if strings.Contains(fmt.Sprint(s), secret) {
				t.Errorf("%s is in %+v", secret, s)
			}
		}
		if s.Failed {
			t.Errorf("failed: %+v", s)
		}
	}
}

// trace waits for the newest trace that begins with a span of that name for an
// endpoint, with all its hops, and returns its spans.
func (c *cluster) trace(t *testing.T, root string, e endpoint, hops []hop) []tracetest.Span {
	t.Helper()
	var spans []tracetest.Span
	eventually(t, "trace of "+root, func() error {
		all := c.traces.Spans()
		i := slices.IndexFunc(all, func(s tracetest.Span) bool { return s.Name == root && s.Attributes["nightjar.endpoint"] == e.UUID })
		if i < 0 {
			return errors.New("it has not begun")
		}
		spans = c.traces.Trace(all[i].Trace)
		parents := map[string]string{}
		for _, s := range spans {
			parents[s.ID] = s.Name
		}
		for _, h := range hops {
			if !slices.ContainsFunc(spans, func(s tracetest.Span) bool {
				return s.Service == h.service && s.Name == h.name && parents[s.Parent] == h.within
			}) {
				return fmt.Errorf("no %+v in %+v", h, spans)
			}
		}
		return nil
	})
	return spans
}
