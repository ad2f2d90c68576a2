package message_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
)

var update = flag.Bool("update", false, "write the golden samples anew")

const endpoint = "03e31275-2277-d8e0-bb5f-480fac7ee4ef"

var received = time.Date(2026, 11, 24, 21, 0, 0, 123456789, time.UTC)

// golden pins the form of a message: subject, headers in order, data.
func golden(t *testing.T, name string, m *nats.Msg, binary bool) {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", m.Subject)
	var keys []string
	for k := range m.Header {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		fmt.Fprintf(&b, "%s: %s\n", k, strings.Join(m.Header[k], " | "))
	}
	if !binary {
		fmt.Fprintf(&b, "\n%s\n", m.Data)
	}
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("%s: the contract has changed\ngot:\n%s\nwant:\n%s", file, b.String(), want)
	}
}

func TestBatch(t *testing.T) {
	lines := []string{`{"Event":{"n":1}}`, ` {"a": "é"}`, `{}`}
	b := message.Batch{Endpoint: endpoint, Hostname: "WS-01", IP: "192.0.2.7", Received: received, TraceParent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
	m := b.BatchMsg([]byte(strings.Join(lines, "\n")+"\n"), len(lines))
	golden(t, "batch", m, true)
	got, _, err := message.ParseBatch(m.Subject, m.Header, m.Data, nil)
	if err != nil {
		t.Fatal(err)
	}
	var back []string
	for _, l := range got.Lines {
		back = append(back, string(l))
	}
	if !slices.Equal(back, lines) || got.Endpoint != endpoint || got.Hostname != "WS-01" || !got.Received.Equal(received) {
		t.Errorf("read back %+v %q", got, back)
	}
	again := b
	again.Received = received.Add(time.Hour)
	if id := again.BatchMsg([]byte(strings.Join(lines, "\n")+"\n"), len(lines)).Header.Get(nats.MsgIdHdr); id != m.Header.Get(nats.MsgIdHdr) {
		t.Error("the same content published later has another message id")
	}
	m.Header.Set(message.HeaderCount, "2")
	if _, _, err := message.ParseBatch(m.Subject, m.Header, m.Data, nil); err == nil {
		t.Error("a batch with a wrong count was read")
	}
}

// Batches of a request that is not traced have one trace context, which says
// that nothing is recorded; others have that of the request.
func TestTraceOfBatch(t *testing.T) {
	trace := func(b message.Batch, line string) string {
		t.Helper()
		m := b.BatchMsg([]byte(line+"\n"), 1)
		got, _, err := message.ParseBatch(m.Subject, m.Header, m.Data, nil)
		if err != nil {
			t.Fatal(err)
		}
		return got.Trace(0)
	}
	b := message.Batch{Endpoint: endpoint, Received: received}
	untraced := trace(b, `{"n":1}`)
	if form := regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-00$`); !form.MatchString(untraced) || untraced != trace(b, `{"n":2}`) {
		t.Errorf("two batches of a request: %s, %s", untraced, trace(b, `{"n":2}`))
	}
	later, other := b, b
	later.Received, other.Endpoint = received.Add(time.Microsecond), strings.Replace(endpoint, "0", "1", 1)
	if untraced == trace(later, `{"n":1}`) || untraced == trace(other, `{"n":1}`) {
		t.Error("batches of several requests have one trace")
	}
	b.TraceParent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	if got := trace(b, `{"n":1}`); got != b.TraceParent {
		t.Errorf("the request's trace %s became %s", b.TraceParent, got)
	}
}

func TestAlert(t *testing.T) {
	for name, line := range map[string]string{
		"alert":         `{"Event":{"EventData":{"Image":"x"},"GeneInfo":{"Signature":["A,1","B"],"Criticality":8}}}`,
		"alert-kunai":   `{"data":{"exe":"/bin/x"},"Event":{"GeneInfo":{"Signature":["A"],"Criticality":8}}}`,
		"alert-edrdata": `{"Event":{"EdrData":{"sent":"by the agent"},"GeneInfo":{"Signature":["A"],"Criticality":8}}}`,
	} {
		t.Run(name, func(t *testing.T) {
			a := message.Alert{
				Endpoint: endpoint, Hostname: "WS-01", IP: "192.0.2.7", Received: received, Time: received, Timed: true,
				Hash: event.HashOf([]byte("sent")), Line: []byte(line), Signatures: []string{"A,1", "B"}, Criticality: 8, Origin: message.OriginBoth,
				Rules: []message.RuleInfo{{Name: "B", Criticality: 8, ATTACK: []event.Attack{{ID: "T1059", Tactic: "execution"}}}},
			}
			m, err := a.Msg()
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name, m, false)
			if _, err := event.Scan(m.Data); err != nil {
				t.Errorf("payload: %v", err)
			}
			back, err := message.ParseAlert(m.Header, m.Data)
			if err != nil {
				t.Fatal(err)
			}
			if string(back.Line) != line {
				t.Errorf("stored line %s, want %s", back.Line, line)
			}
			if !slices.Equal(back.Signatures, a.Signatures) || back.Hash != a.Hash || !back.Time.Equal(a.Time) || len(back.Rules) != 1 {
				t.Errorf("read back %+v", back)
			}
		})
	}
}

func TestDeadLetter(t *testing.T) {
	d := message.DeadLetter{Endpoint: endpoint, Reason: message.ReasonNotJSON, Detail: "line 3\nof the body", Received: received, Line: []byte("no event"), Size: 8}
	golden(t, "deadletter", d.Msg(), false)
}

// What is sent after a removal is another message than the same before it, and
// carries the generation to whoever reads it.
func TestGenerations(t *testing.T) {
	const generation = 1714979289123
	line := []byte(`{"Event":{"GeneInfo":{"Signature":["A"],"Criticality":8}}}`)
	msgs := func(generation uint64) map[string]*nats.Msg {
		b := message.Batch{Endpoint: endpoint, Received: received, Generation: generation}
		a := message.Alert{Endpoint: endpoint, Received: received, Time: received, Hash: event.HashOf(line), Line: line,
			Signatures: []string{"A"}, Criticality: 8, Origin: message.OriginAgent, Generation: generation}
		alert, err := a.Msg()
		if err != nil {
			t.Fatal(err)
		}
		d := message.DeadLetter{Endpoint: endpoint, Reason: message.ReasonNotJSON, Received: received, Line: []byte("no event"), Size: 8, Generation: generation}
		return map[string]*nats.Msg{"batch": b.BatchMsg(append(line, '\n'), 1), "alert": alert, "deadletter": d.Msg()}
	}
	before := msgs(0)
	for name, m := range msgs(generation) {
		golden(t, name+"-generation", m, name == "batch")
		if got := message.GenerationOf(m.Header); got != generation {
			t.Errorf("%s: generation %d", name, got)
		}
		if old := before[name]; m.Header.Get(nats.MsgIdHdr) == old.Header.Get(nats.MsgIdHdr) || message.GenerationOf(old.Header) != 0 {
			t.Errorf("%s: the same message id before and after a removal", name)
		}
	}
	m := msgs(generation)
	if b, _, err := message.ParseBatch(m["batch"].Subject, m["batch"].Header, m["batch"].Data, nil); err != nil || b.Generation != generation {
		t.Errorf("batch read back with generation %d, %v", b.Generation, err)
	}
	if a, err := message.ParseAlert(m["alert"].Header, m["alert"].Data); err != nil || a.Generation != generation {
		t.Errorf("alert read back with generation %d, %v", a.Generation, err)
	}
}

func TestRemovalRecord(t *testing.T) {
	r := message.RemovalRecord{Generation: 1714979289123, Time: received, Operator: "admin", Ends: map[string]uint64{"EVENTS": 12, "ALERTS": 3}}
	for _, name := range []string{"removal", "removal-settled"} {
		data, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name, &nats.Msg{Subject: "$KV.removed." + endpoint, Data: data}, false)
		r.Settled = map[string]uint64{"EVENTS": 15, "ALERTS": 3}
	}
}

func TestDecompressIsBounded(t *testing.T) {
	bomb := message.Compress(nil, bytes.Repeat([]byte{'a'}, 65<<20))
	if _, err := message.Decompress(nil, bomb); err == nil {
		t.Errorf("%d bytes inflated to more than 64 MiB", len(bomb))
	}
}

func FuzzParseAlert(f *testing.F) {
	f.Add("0-1", "", []byte(`{}`))
	f.Add("5-3", "x", []byte(`{"Event":{}}`))
	f.Fuzz(func(_ *testing.T, added, sent string, data []byte) {
		h := nats.Header{}
		h.Set(message.HeaderReceived, received.Format(time.RFC3339Nano))
		h.Set(message.HeaderTime, received.Format(time.RFC3339Nano))
		h.Set(message.HeaderHash, strings.Repeat("0", 32))
		h.Set(message.HeaderCriticality, "1")
		h.Set(message.HeaderRules, "null")
		h.Set(message.HeaderAdded, added)
		h.Set(message.HeaderSent, sent)
		_, _ = message.ParseAlert(h, data) // must not panic
	})
}

// A batch of a few lines keeps them as they are, for the stream to compress
// among others; both forms are zstd and are read alike.
func TestSmallBatchIsStored(t *testing.T) {
	b := message.Batch{Endpoint: endpoint, Received: received}
	for _, tc := range []struct {
		size   int
		stored bool
	}{{255, false}, {256, true}, {257, true}, {4000, true}, {8 << 10, true}, {8<<10 + 1, false}, {300_000, false}} {
		line := []byte(`"` + strings.Repeat("x", tc.size-3) + "\"\n")
		m := b.BatchMsg(line, 1)
		if got := bytes.Contains(m.Data, line); got != tc.stored || message.Stored(m.Data) != got {
			t.Errorf("%d bytes: stored %v, told %v", tc.size, got, message.Stored(m.Data))
		}
		got, _, err := message.ParseBatch(m.Subject, m.Header, m.Data, nil)
		if err != nil || len(got.Lines) != 1 || !bytes.Equal(got.Lines[0], line[:len(line)-1]) {
			t.Errorf("%d bytes come back as %d lines, %v", tc.size, len(got.Lines), err)
		}
	}
}
