package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/samples"
)

// plainEvent makes an event that no rule of the tests matches.
func plainEvent(n int, at time.Time) []byte {
	return fmt.Appendf(nil, `{"Event":{"EventData":{"Image":"C:\\Program Files\\App\\app.exe","N":"%d","CommandLine":"app.exe --id %d"},"System":{"Channel":"Microsoft-Windows-Sysmon/Operational","Computer":"WS","EventID":"1","TimeCreated":{"SystemTime":"%s"}}}}`, n, n, at.UTC().Format(time.RFC3339Nano))
}

// badEvent makes an event that testRule matches.
func badEvent(n int, at time.Time) []byte {
	return fmt.Appendf(nil, `{"Event":{"EventData":{"Image":"C:\\Temp\\evil.exe","N":"%d"},"System":{"Channel":"Microsoft-Windows-Sysmon/Operational","Computer":"WS","EventID":"1","TimeCreated":{"SystemTime":"%s"}}}}`, n, at.UTC().Format(time.RFC3339Nano))
}

const testRule = `{"Name":"EvilImage","Tags":[],"Meta":{"EventIDs":[1],"Channels":["Microsoft-Windows-Sysmon/Operational"],"Computers":[],"ATTACK":[{"ID":"T1036","Tactic":"stealth","Reference":"https://attack.mitre.org/techniques/T1036"}],"Criticality":8,"Disable":false,"Filter":false},"Matches":["$i: Image ~= '(?i:evil\\.exe)$'"],"Condition":"$i"}`

// TestEventToSIEM walks an event from the agent's POST to the SIEM, the store
// and the score, with rules and events that the project brings.
func TestEventToSIEM(t *testing.T) {
	rules := t.TempDir()
	if err := samples.WriteRules(rules); err != nil {
		t.Fatal(err)
	}
	p := start(t, t.TempDir(), "--rules-dir", rules)
	live := p.siem()
	heard := make(chan *nats.Msg, 1024)
	if _, err := live.ChanSubscribe("edr.alerts.>", heard); err != nil {
		t.Fatal(err)
	}
	if err := live.Flush(); err != nil {
		t.Fatal(err)
	}
	expected := map[string]int{}
	posted := map[string]int{}
	hosts := map[string]endpoint{}
	for _, story := range samples.Endpoints() {
		e := p.enrol()
		hosts[e.UUID] = e
		lines := story.ShiftTo(time.Now().Add(-time.Second))
		for _, x := range story.Expected {
			expected[fmt.Sprintf("%s %s %d %s", e.UUID, strings.Join(x.Signatures, ","), x.Criticality, x.Origin)]++
		}
		posted[e.UUID] = len(lines)
		p.mustPost(e, lines...)
	}
	total := 0
	for _, n := range expected {
		total += n
	}
	got := map[string]int{}
	note := func(subject string, h nats.Header, data []byte) {
		t.Helper()
		var doc struct {
			Event struct {
				GeneInfo struct {
					Signature   []string
					Criticality int
				}
				EdrData struct {
					Endpoint struct{ UUID, Hostname, IP string }
					Event    struct {
						Hash        string
						ReceiptTime time.Time
						Detection   bool
					}
				}
			}
		}
		if err := json.Unmarshal(data, &doc); err != nil {
			t.Errorf("payload: %v: %s", err, data)
			return
		}
		uuid := h.Get("Nightjar-Endpoint")
		if doc.Event.EdrData.Endpoint.UUID != uuid || doc.Event.EdrData.Endpoint.Hostname != "host-"+uuid[:8] || doc.Event.EdrData.Endpoint.IP != "127.0.0.1" ||
			!doc.Event.EdrData.Event.Detection || len(doc.Event.EdrData.Event.Hash) != 32 || time.Since(doc.Event.EdrData.Event.ReceiptTime) > time.Hour {
			t.Errorf("EdrData %+v", doc.Event.EdrData)
		}
		if s := h.Get("Nightjar-Signatures"); s != strings.Join(doc.Event.GeneInfo.Signature, ",") {
			t.Errorf("header %q, payload %q", s, doc.Event.GeneInfo.Signature)
		}
		if !strings.HasSuffix(subject, "."+uuid) || h.Get("traceparent") == "" {
			t.Errorf("subject %s, headers %v", subject, h)
		}
		got[fmt.Sprintf("%s %s %d %s", uuid, strings.Join(doc.Event.GeneInfo.Signature, ","), doc.Event.GeneInfo.Criticality, h.Get("Nightjar-Origin"))]++
	}
	for range total {
		select {
		case m := <-heard:
			note(m.Subject, m.Header, m.Data)
		case <-time.After(deadline):
			t.Fatalf("only %d of %d alerts arrived", len(got), total)
		}
	}
	compare(t, "live", got, expected)
	got = map[string]int{}
	for _, m := range p.alerts() {
		note(m.Subject(), m.Headers(), m.Data())
	}
	compare(t, "durable", got, expected)

	for _, e := range hosts {
		eventually(t, "stored", func() error {
			if n := len(p.events(e, "logs"+everything)); n != posted[e.UUID] {
				return fmt.Errorf("%d of %d events", n, posted[e.UUID])
			}
			return nil
		})
		want := 0
		for k, n := range expected {
			if strings.HasPrefix(k, e.UUID) {
				want += n
			}
		}
		eventually(t, "alerts stored", func() error {
			if n := len(p.events(e, "alerts"+everything)); n != want {
				return fmt.Errorf("%d of %d alerts", n, want)
			}
			return nil
		})
		eventually(t, "report", func() error {
			var report struct {
				Count int `json:"alert-count"`
				Score int
			}
			if err := json.Unmarshal(p.data(http.MethodGet, "/endpoints/"+e.UUID+"/report", ""), &report); err != nil {
				return err
			}
			if report.Count != want {
				return fmt.Errorf("%d of %d alerts in the report", report.Count, want)
			}
			return nil
		})
		for _, raw := range p.events(e, "logs"+everything) {
			if strings.Contains(string(raw), "EdrData") {
				t.Errorf("EdrData in the store: %s", raw)
			}
		}
	}
}

func compare(t *testing.T, what string, got, want map[string]int) {
	t.Helper()
	for k, n := range want {
		if got[k] != n {
			t.Errorf("%s: %q %d times, want %d", what, k, got[k], n)
		}
	}
	for k, n := range got {
		if want[k] == 0 {
			t.Errorf("%s: %q %d times, not expected", what, k, n)
		}
	}
}

// TestSameEventTwice sends the same events again in other batches.
func TestSameEventTwice(t *testing.T) {
	p := start(t, t.TempDir())
	p.data(http.MethodPost, "/rules", testRule)
	e := p.enrol()
	at := time.Now().Add(-10 * time.Minute)
	var lines [][]byte
	for i := range 30 {
		if i%3 == 0 {
			lines = append(lines, badEvent(i, at.Add(time.Duration(i)*time.Second)))
		} else {
			lines = append(lines, plainEvent(i, at.Add(time.Duration(i)*time.Second)))
		}
	}
	p.mustPost(e, lines...)
	p.mustPost(e, lines[5:15]...)
	p.mustPost(e, lines...)
	slices.Reverse(lines)
	p.mustPost(e, lines...)
	p.mustPost(e, plainEvent(99, time.Now()))
	check := func() {
		t.Helper()
		eventually(t, "stored once", func() error {
			if n := len(p.events(e, "logs"+everything)); n != 31 {
				return fmt.Errorf("%d events, want 31", n)
			}
			if n := len(p.events(e, "alerts"+everything)); n != 10 {
				return fmt.Errorf("%d alerts, want 10", n)
			}
			return nil
		})
	}
	check()
	p.terminate()
	p.run()
	p.mustPost(e, lines...)
	p.mustPost(e, plainEvent(98, time.Now()))
	eventually(t, "the last event", func() error {
		if n := len(p.events(e, "logs"+everything)); n != 32 {
			return fmt.Errorf("%d events, want 32", n)
		}
		return nil
	})
	if n := len(p.alerts()); n != 10 {
		t.Errorf("%d alerts at the SIEM, want 10", n)
	}
}

// TestSIEMCanDoNothingElse tries the SIEM's user on what it must not do.
func TestSIEMCanDoNothingElse(t *testing.T) {
	p := start(t, t.TempDir())
	denied := make(chan error, 16)
	seed, err := nats.NkeyOptionFromSeed(p.dir + "/siem.nk")
	if err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect("nats://"+p.nats, seed, nats.RootCAs(p.dir+"/tls/ca.pem"), nats.CustomInboxPrefix("_INBOX_siem"),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { denied <- err }))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	must := func(what string) {
		t.Helper()
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-denied:
			if !errors.Is(err, nats.ErrPermissionViolation) && !strings.Contains(strings.ToLower(err.Error()), "permissions violation") {
				t.Errorf("%s: %v", what, err)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s was allowed", what)
		}
	}
	for _, s := range []string{"edr.alerts.high.x", "edr.events.0.x", "edr.registry.list", "$JS.API.STREAM.INFO.ALERTS", "$JS.API.STREAM.DELETE.ALERTS",
		"$JS.API.CONSUMER.CREATE.ALERTS.other", "$JS.API.CONSUMER.DELETE.ALERTS.siem", "$JS.API.CONSUMER.MSG.NEXT.ALERTS.other", "$KV.endpoints.x"} {
		if err := nc.Publish(s, nil); err != nil {
			t.Fatal(err)
		}
		must("publish " + s)
	}
	for _, s := range []string{">", "edr.events.>", "edr.registry.>", "$KV.>", "_INBOX.>", "_INBOX_api-gateway.>"} {
		if _, err := nc.SubscribeSync(s); err != nil {
			t.Fatal(err)
		}
		must("subscribe " + s)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	if _, err := siemConsumer(ctx, js); err != nil {
		t.Errorf("its own consumer: %v", err)
	}
	if anonymous, err := nats.Connect("nats://"+p.nats, nats.RootCAs(p.dir+"/tls/ca.pem")); err == nil {
		anonymous.Close()
		t.Error("NATS is open to anybody")
	}
}
