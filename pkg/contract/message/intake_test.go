package message_test

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
)

// taken are batches as a gateway takes them in.
func taken() []message.Joined {
	var list []message.Joined
	for n, text := range []string{"{\"n\":1}\n", "{}\n{\"a\":\"\u00e9\"}\n", "{\"n\":1}\n"} {
		at := received.Truncate(time.Microsecond).Add(time.Duration(n*1500) * time.Microsecond)
		if n == 2 {
			at = received.Truncate(time.Microsecond).Add(-time.Second) // a clock that was put right
		}
		list = append(list, message.Joined{
			Batch: message.Batch{Endpoint: endpoint, Hostname: "WS-01", IP: "192.0.2.7", Received: at, Generation: 1714979289123},
			Text:  []byte(text), Count: strings.Count(text, "\n"),
		})
	}
	return list
}

func TestIntake(t *testing.T) {
	want := taken()
	want[1].Endpoint, want[1].Hostname, want[1].IP, want[1].Generation = strings.Replace(endpoint, "0", "1", 1), "", "", 0
	m := message.IntakeMsg("ONE", want)
	golden(t, "intake", m, true)
	if got := fmt.Sprintf("%x", m.Data); !strings.HasPrefix(got, fmt.Sprintf("24%x05%x", endpoint, "WS-01")) {
		t.Errorf("data begins with %s", got)
	}
	got, err := message.ParseIntake(m.Header, m.Data)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read back %+v, %v\nwant %+v", got, err, want)
	}
	for n := 1; n < len(m.Data); n++ {
		if list, err := message.ParseIntake(m.Header, m.Data[:n]); err == nil && len(list) == len(want) {
			t.Errorf("cut off at %d of %d: %d batches", n, len(m.Data), len(list))
		}
	}
	m.Header.Set(message.HeaderFormat, "2")
	if _, err := message.ParseIntake(m.Header, m.Data); err == nil {
		t.Error("a message of another format was read")
	}
}

// Lines that come together in one message keep the order and the time in which
// they were received.
func TestJoin(t *testing.T) {
	parts := taken()
	m := message.Join(parts)
	golden(t, "batch-joined", m, true)
	b, _, err := message.ParseBatch(m.Subject, m.Header, m.Data, nil)
	if err != nil {
		t.Fatal(err)
	}
	line := 0
	traces := map[string]int{}
	for _, p := range parts {
		for text := range bytes.Lines(p.Text) {
			if string(b.Lines[line]) != strings.TrimSuffix(string(text), "\n") || !b.ReceivedAt(line).Equal(p.Received) {
				t.Errorf("line %d: %s received at %s, want %s at %s", line, b.Lines[line], b.ReceivedAt(line), text, p.Received)
			}
			traces[b.Trace(line)]++
			line++
		}
	}
	if line != len(b.Lines) || b.Hostname != "WS-01" || b.IP != "192.0.2.7" || b.Generation != 1714979289123 {
		t.Errorf("read back %+v", b)
	}
	if len(traces) != len(parts) {
		t.Errorf("%d requests have %d traces", len(parts), len(traces))
	}
	// A batch alone is what it always was.
	one, same := message.Join(parts[1:2]), parts[1].BatchMsg(parts[1].Text, parts[1].Count)
	if !reflect.DeepEqual(one, same) {
		t.Errorf("%+v\nwant %+v", one, same)
	}
	for _, broken := range []string{"!", "AA", "AQ", "AgAD", "AwAA", "////////////AAA"} {
		m.Header.Set(message.HeaderReceipts, broken)
		if got, _, err := message.ParseBatch(m.Subject, m.Header, m.Data, nil); err == nil {
			t.Errorf("times of receipt %q: %+v", broken, got.Receipts)
		}
	}
}

func FuzzParseIntake(f *testing.F) {
	f.Add(message.IntakeMsg("ONE", taken()).Data)
	f.Add([]byte{36, 255})
	f.Fuzz(func(t *testing.T, data []byte) {
		m := message.IntakeMsg("ONE", nil)
		list, err := message.ParseIntake(m.Header, data)
		if err != nil {
			return
		}
		again, err := message.ParseIntake(m.Header, message.IntakeMsg("ONE", list).Data)
		if err != nil || !reflect.DeepEqual(again, list) {
			t.Errorf("%+v became %+v, %v", list, again, err)
		}
	})
}

func FuzzReceipts(f *testing.F) {
	f.Add("AQABAA", 2)
	f.Fuzz(func(t *testing.T, text string, count int) {
		if count < 1 || count > 50 {
			return
		}
		b := message.Batch{Endpoint: endpoint, Received: received}
		m := b.BatchMsg(bytes.Repeat([]byte("{}\n"), count), count)
		m.Header.Set(message.HeaderReceipts, text)
		got, _, err := message.ParseBatch(m.Subject, m.Header, m.Data, nil)
		if err != nil {
			return
		}
		if !slices.IsSortedFunc(got.Receipts, func(a, b message.Receipt) int { return a.Until - b.Until }) {
			t.Errorf("%q: %+v", text, got.Receipts)
		}
		for i := range count {
			_ = got.ReceivedAt(i) // must not panic
		}
	})
}
