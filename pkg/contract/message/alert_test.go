package message_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
)

// TestAlertOfAgent checks that the payload of an alert that only the agent
// raised has the detection in GeneInfo, and that the line comes back as it was
// sent, wherever the mark stands.
func TestAlertOfAgent(t *testing.T) {
	for name, tt := range map[string]struct {
		line string
		// criticality is what the payload says.
		criticality int
	}{
		"gene info":            {`{"Event":{"GeneInfo":{"Signature":["S"],"Criticality":42}}}`, 8},
		"detection":            {`{"Event":{"Detection":{"Signature":["S"]},"System":{}}}`, 8},
		"gene info is no mark": {`{"Event":{"GeneInfo" : "text","Detection":{"Signature":["S"]},"EdrData":[1, 2]}}`, 8},
		"kunai":                {"{\"detection\":{\"rules\":[\"S\"]}\t,\r\"n\":1e400 } ", 8},
		"bytes that look same": {`{"Event":{"Detection":{"Signature":["S"]},"EdrData":{"Endpoint":{"UUID":"` + endpoint + `"}}}}`, 8},
	} {
		t.Run(name, func(t *testing.T) {
			a := message.Alert{
				Endpoint: endpoint, Received: received, Time: received, Hash: event.HashOf([]byte(tt.line)), Line: []byte(tt.line),
				Signatures: []string{"S"}, Criticality: 8, Origin: message.OriginAgent, ATTACK: []event.Attack{{ID: "T1", Tactic: "t"}},
			}
			m, err := a.Msg()
			if err != nil {
				t.Fatal(err)
			}
			var doc struct {
				Event struct {
					GeneInfo event.GeneInfo
					EdrData  event.EdrData
				}
			}
			if err := json.Unmarshal(m.Data, &doc); err != nil {
				t.Fatalf("payload %s: %v", m.Data, err)
			}
			if g := doc.Event.GeneInfo; len(g.Signature) != 1 || g.Criticality != tt.criticality || doc.Event.EdrData.Endpoint.UUID != endpoint {
				t.Errorf("payload %s", m.Data)
			}
			back, err := message.ParseAlert(m.Header, m.Data)
			if err != nil {
				t.Fatal(err)
			}
			if string(back.Line) != tt.line {
				t.Errorf("got %q, want %q", back.Line, tt.line)
			}
		})
	}
}

// TestAlertRoundTrip checks with events of all arrangements that the stored line
// and the names survive.
func TestAlertRoundTrip(t *testing.T) {
	members := []string{
		"", `"GeneInfo":{"Signature":["a"]}`, `"GeneInfo":null`, `"Detection":{"Signature":["b"]}`, `"EdrData":{}`,
		`"EdrData":{"Endpoint":{}}`, `"x":"}{"`, `"GeneInfo":{}`,
	}
	tops := []string{"", `"detection":{"rules":["k"]}`, `"Event":1`, `"y":[{}]`}
	names := []string{"a,b", " blank ", "100%", "line\nend", "é:\"", "plain"}
	join := func(parts ...string) string {
		return strings.Join(slices.DeleteFunc(parts, func(p string) bool { return p == "" }), " , ")
	}
	check := func(line string, origin message.Origin) {
		a := message.Alert{Endpoint: endpoint, Received: received, Time: received, Line: []byte(line), Signatures: names, Origin: origin}
		m, err := a.Msg()
		if err != nil {
			t.Fatal(err)
		}
		if !json.Valid(m.Data) {
			t.Fatalf("payload %s", m.Data)
		}
		back, err := message.ParseAlert(m.Header, m.Data)
		if err != nil {
			t.Fatal(err)
		}
		if string(back.Line) != line {
			t.Fatalf("got %s, want %s", back.Line, line)
		}
		if !slices.Equal(back.Signatures, names) {
			t.Fatalf("names %q became %q", names, back.Signatures)
		}
	}
	for _, origin := range []message.Origin{message.OriginAgent, message.OriginManager} {
		for _, top := range tops {
			check("{"+top+"}", origin)
			for _, a := range members {
				for _, b := range members {
					for _, c := range members {
						check("{"+join(top, `"Event":{`+join(a, b, c)+`}`)+"}", origin)
						check("{"+join(`"Event":{`+join(a, b, c)+`}`, top)+" }", origin)
					}
				}
			}
		}
	}
}

// TestParseAlertRefusesSpans checks that a header that does not name a span of
// the payload is told of, and not read as far as it goes.
func TestParseAlertRefusesSpans(t *testing.T) {
	a := message.Alert{Endpoint: endpoint, Received: received, Time: received, Line: []byte(`{"Event":{}}`), Signatures: []string{"S"}, Origin: message.OriginManager}
	m, err := a.Msg()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := message.ParseAlert(m.Header, m.Data); err != nil {
		t.Fatal(err)
	}
	for _, span := range []string{"", "1", "-", "1-", "-2", "-1-2", "5-3", "0-9999", "1-2x", "1-2-3", "1 -2"} {
		m.Header.Set(message.HeaderAdded, span)
		if got, err := message.ParseAlert(m.Header, m.Data); err == nil || !strings.Contains(err.Error(), message.HeaderAdded) {
			t.Errorf("%q gives the line %q, error %v", span, got.Line, err)
		}
	}
}

// BenchmarkAlert makes the message of an alert and reads it back.
func BenchmarkAlert(b *testing.B) {
	line := []byte(`{"Event":{"EventData":{"CommandLine":"` + strings.Repeat("x", 1000) + `"},"GeneInfo":{"Signature":["A"],"Criticality":8}}}`)
	a := message.Alert{
		Endpoint: endpoint, Hostname: "WS-01", IP: "192.0.2.7", Received: received, Time: received, Timed: true,
		Hash: event.HashOf(line), Line: line, Signatures: []string{"A"}, Criticality: 8, Origin: message.OriginManager,
		Rules: []message.RuleInfo{{Name: "A", Criticality: 8, ATTACK: []event.Attack{{ID: "T1059", Tactic: "execution"}}}},
	}
	m, err := a.Msg()
	if err != nil {
		b.Fatal(err)
	}
	b.Run("make", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := a.Msg(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("read", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := message.ParseAlert(m.Header, m.Data); err != nil {
				b.Fatal(err)
			}
		}
	})
}
