package ruleengine

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/samples"
)

var update = flag.Bool("update", false, "write golden files")

// golden compares with a file in testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs:\n%s", name, got)
	}
}

// transcript writes messages as golden files hold them.
func transcript(msgs []*jetstream.RawStreamMsg) []byte {
	var b bytes.Buffer
	for _, m := range msgs {
		fmt.Fprintln(&b, m.Subject)
		keys := make([]string, 0, len(m.Header))
		for k := range m.Header {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		for _, k := range keys {
			if k == message.HeaderSent {
				// Its bytes depend on the compressor; ParseAlert reads it back.
				fmt.Fprintf(&b, "%s: *\n", k)
				continue
			}
			fmt.Fprintf(&b, "%s: %s\n", k, m.Header.Get(k))
		}
		fmt.Fprintf(&b, "\n%s\n\n", m.Data)
	}
	return b.Bytes()
}

const (
	lineBoth = `{ "Event": {"GeneInfo":{"Signature":["Agent:Own","evil"],"Criticality":2,"Other":1.0,"ATTACK":[{"ID":"T1003","Tactic":"Credential Access","Reference":"r"}]},"EventData":{"Image":"evil.exe"},"System":{"Channel":"Test","EventID":"1","TimeCreated":{"SystemTime":"2030-05-06T07:00:01+02:00"}}} }`
	// lineOutOfRange has a mark of the agent alone, with a criticality
	// beyond the scale.
	lineOutOfRange = `{"Event":{"GeneInfo":{"Signature":["Agent:Loud"],"Criticality":42},"EventData":{}}}`
	lineDetection  = `{"Event":{"GeneInfo":{"Signature":"text"},"Detection":{"Signature":["Agent:Det"],"Criticality":8,"ATTACK":[{"ID":"T1","Tactic":"T","Reference":""}]},"EventData":{"n":1e400}}}`
	lineKunai      = `{"info":{"utc_time":"2030-05-06T07:00:02Z"},"detection":{"rules":["kunai, rule"],"severity":4}}`
	lineSentEdr    = `{"Event":{"EdrData":{"mine":"ä<>"},"Detection":{"Signature":["Agent:Edr"],"Criticality":1}}}`
)

func TestAlertsGolden(t *testing.T) {
	r := newRig(t)
	x := r.start(r.config())
	x.mustAdd(false, rule("evil", "evil", 5, "")+rule("also", "evil", 3, "")+rule("kept", "kept", 0, `,"Filter":true`))
	r.send(endpointA,
		event4(1, "harmless.exe"), event4(2, "kept.exe"), event4(3, "evil.exe"),
		lineBoth, lineOutOfRange, lineDetection, lineKunai, lineSentEdr,
		`{"Event":{"GeneInfo":{"Signature":null},"Detection":{"Signature":[]}},"detection":{"rules":[1]}}`,
		`{"Event":{"GeneInfo":{"Signature":["a",1],"Criticality":9}}}`, `{}`)
	alerts := r.alerts()
	golden(t, "alerts.golden", transcript(r.raw(stream.Alerts)))

	// What is stored are the sent bytes, with the detection where the
	// rule-engine found one.
	want := []struct {
		line        string
		signatures  []string
		criticality int
		origin      message.Origin
		rules       []string
	}{
		{event4(3, "evil.exe"), []string{"also", "evil"}, 8, message.OriginManager, []string{"also", "evil"}},
		{lineBoth, []string{"Agent:Own", "evil", "also"}, 8, message.OriginBoth, []string{"evil", "also"}},
		{lineOutOfRange, []string{"Agent:Loud"}, 10, message.OriginAgent, nil},
		{lineDetection, []string{"Agent:Det"}, 8, message.OriginAgent, nil},
		{lineKunai, []string{"kunai, rule"}, 4, message.OriginAgent, nil},
		{lineSentEdr, []string{"Agent:Edr"}, 1, message.OriginAgent, nil},
	}
	if len(alerts) != len(want) {
		t.Fatalf("%d alerts, want %d", len(alerts), len(want))
	}
	for i, w := range want {
		a := alerts[i]
		var known []string
		for _, info := range a.Rules {
			known = append(known, info.Name)
		}
		if !slices.Equal(a.Signatures, w.signatures) || a.Criticality != w.criticality || a.Origin != w.origin || !slices.Equal(known, w.rules) {
			t.Errorf("alert %d: %q %d %s, rules %q", i, a.Signatures, a.Criticality, a.Origin, known)
		}
		if a.Hash != event.HashOf([]byte(w.line)) || !a.Received.Equal(received) {
			t.Errorf("alert %d: hash %s, received %s", i, a.Hash, a.Received)
		}
		if w.origin == message.OriginAgent && string(a.Line) != w.line {
			t.Errorf("alert %d: stored line\n%s\nis not what was sent", i, a.Line)
		}
	}
	for name, wants := range map[string]float64{
		"nightjar_rule_engine_batches_total": 1, "nightjar_rule_engine_events_total": 11, "nightjar_rule_engine_filtered_events_total": 1,
		"nightjar_rule_engine_alerts_total": 6, "nightjar_rule_engine_repeated_total": 0, "nightjar_rule_engine_batch_duration_seconds": 1,
		"nightjar_rule_engine_rules": 3, "nightjar_rule_engine_consumer_pending": 0, "nightjar_dead_letters_total": 0,
	} {
		eventually(t, func() error {
			if got := x.value(name); got != wants {
				return fmt.Errorf("%s is %v, want %v", name, got, wants)
			}
			return nil
		})
	}
	if got := x.value("nightjar_rule_engine_alerts_total", "severity", "high", "origin", "agent"); got != 1 {
		t.Errorf("%v alerts of high severity by agents", got)
	}
}

// TestSIEMPayload checks that what a SIEM gets has GeneInfo and EdrData once
// each, wherever the mark stands.
func TestSIEMPayload(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.SIEMs = []string{"siem", "other"}
	r.start(cfg)
	r.send(endpointA, lineDetection, lineKunai, lineSentEdr)
	r.settle()
	for _, m := range r.raw(stream.Alerts) {
		if g, e := bytes.Count(m.Data, []byte(`"GeneInfo"`)), bytes.Count(m.Data, []byte(`"EdrData"`)); g != 1 || e != 1 {
			t.Errorf("%d GeneInfo and %d EdrData in %s", g, e, m.Data)
		}
		var doc struct {
			Event struct {
				GeneInfo event.GeneInfo
				EdrData  event.EdrData
			}
		}
		if err := json.Unmarshal(m.Data, &doc); err != nil {
			t.Fatal(err)
		}
		if len(doc.Event.GeneInfo.Signature) != 1 || !doc.Event.EdrData.Event.Detection || doc.Event.EdrData.Endpoint.UUID != endpointA {
			t.Errorf("payload %s", m.Data)
		}
	}
	for _, name := range cfg.SIEMs {
		c, err := r.bus.JS.Consumer(t.Context(), stream.Alerts, name)
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.FetchNoWait(10)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for m := range got.Messages() {
			if err := m.Ack(); err != nil {
				t.Error(err)
			}
			if m.Headers().Get("Nats-Msg-Id") == "" {
				t.Error("alert without an id")
			}
			n++
		}
		if n != 3 {
			t.Errorf("SIEM %s got %d alerts", name, n)
		}
	}
}

func TestSameEventRaisesOnce(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	x := r.start(cfg)
	x.mustAdd(false, rule("evil", "evil", 5, ""))
	evil := event4(1, "evil.exe")
	r.send(endpointA, evil, event4(2, "x"), evil)
	r.send(endpointA, event4(3, "x"), evil)
	r.send(endpointB, evil)
	if got := r.alerts(); len(got) != 2 {
		t.Fatalf("%d alerts, want one for each endpoint", len(got))
	}
	eventually(t, func() error {
		if got := x.value("nightjar_rule_engine_repeated_total"); got != 2 {
			return fmt.Errorf("%v repetitions counted", got)
		}
		return nil
	})

	t.Run("after a restart with the store deleted", func(t *testing.T) {
		x.stop()
		forgetMessageIDs(t, r)
		y := r.start(r.config())
		r.send(endpointA, event4(4, "x"), evil)
		n := 0
		for _, a := range r.alerts() {
			if a.Endpoint == endpointA {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%d alerts", n)
		}
		eventually(t, func() error {
			if got := y.value("nightjar_rule_engine_repeated_total"); got != 1 {
				return fmt.Errorf("%v repetitions counted", got)
			}
			return nil
		})
	})
}

// forgetMessageIDs makes the stream ALERTS forget the ids that it knows, so that
// only the view can recognise a repetition. It leaves alerts of another
// endpoint behind.
func forgetMessageIDs(t *testing.T, r *rig) {
	t.Helper()
	s, err := r.bus.JS.Stream(t.Context(), stream.Alerts)
	if err != nil {
		t.Fatal(err)
	}
	cfg := s.CachedInfo().Config
	cfg.Duplicates = 100 * time.Millisecond
	probe := message.Alert{
		Endpoint: "99999999-9999-9999-9999-999999999999", Received: received, Time: received, Line: []byte("{}"),
		Hash: event.HashOf([]byte("{}")), Signatures: []string{"probe"}, Origin: message.OriginAgent,
	}
	m, err := probe.Msg()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.bus.JS.PublishMsg(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		// The server may look at its ids once more with the window from
		// before a change, and then not for that long: so it is changed again.
		cfg.Duplicates += time.Millisecond
		if _, err := r.bus.JS.UpdateStream(t.Context(), cfg); err != nil {
			return err
		}
		ack, err := r.bus.JS.PublishMsg(t.Context(), m)
		if err == nil && ack.Duplicate {
			err = errors.New("still known")
		}
		return err
	})
}

func TestRuleIsLiveBetweenBatches(t *testing.T) {
	r := newRig(t)
	x := r.start(r.config())
	r.send(endpointA, event4(1, "evil.exe"))
	if got := r.alerts(); len(got) != 0 {
		t.Fatalf("%d alerts without rules", len(got))
	}
	x.mustAdd(false, rule("evil", "evil", 5, ""))
	r.send(endpointA, event4(2, "evil.exe"))
	if got := r.alerts(); len(got) != 1 {
		t.Fatalf("%d alerts, the rule is not live", len(got))
	}
	x.mustAdd(true, rule("evil", "worse", 5, ""))
	r.send(endpointA, event4(3, "evil.exe"), event4(4, "worse.exe"))
	if got := r.alerts(); len(got) != 2 || !strings.Contains(string(got[1].Line), "evil.exe") {
		t.Fatalf("%d alerts before the reload", len(got))
	}
	x.reload()
	r.send(endpointA, event4(5, "evil.exe"), event4(6, "worse.exe"))
	if got := r.alerts(); len(got) != 3 || !strings.Contains(string(got[2].Line), "worse.exe") {
		t.Fatalf("%d alerts after the reload", len(got))
	}
}

func TestSamples(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.RulesDir = filepath.Join(t.TempDir(), "rules")
	if err := samples.WriteRules(cfg.RulesDir); err != nil {
		t.Fatal(err)
	}
	r.start(cfg)
	type found struct {
		signatures  []string
		criticality int
		origin      string
	}
	want := map[string]found{}
	for i, ep := range samples.Endpoints() {
		uuid := fmt.Sprintf("00000000-0000-0000-0000-%012d", i)
		lines := make([]string, len(ep.Lines))
		for n, l := range ep.Lines {
			lines[n] = string(l)
		}
		for _, e := range ep.Expected {
			want[message.MsgID(uuid, 0, event.HashOf(ep.Lines[e.Line]))] = found{e.Signatures, e.Criticality, e.Origin}
		}
		r.send(uuid, lines...)
	}
	got := r.alerts()
	for _, a := range got {
		id := message.MsgID(a.Endpoint, a.Generation, a.Hash)
		w, ok := want[id]
		if !ok || !slices.Equal(a.Signatures, w.signatures) || a.Criticality != w.criticality || string(a.Origin) != w.origin {
			t.Errorf("got %q %d %s, want %+v", a.Signatures, a.Criticality, a.Origin, w)
		}
		delete(want, id)
	}
	for _, w := range want {
		t.Errorf("missing %+v", w)
	}
	for _, m := range r.raw(stream.Alerts) {
		a, err := message.ParseAlert(m.Header, m.Data)
		if err != nil {
			t.Fatal(err)
		}
		if m.Subject != subject.Alerts(subject.SeverityOf(a.Criticality), a.Endpoint) {
			t.Errorf("criticality %d on %s", a.Criticality, m.Subject)
		}
	}
}
