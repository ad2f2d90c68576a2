package message_test

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"

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
	large := large(40)
	want = append(want, large.Keep())
	if p := want[3]; !p.Packed || p.Size() != len(large.Text) || len(p.Text) > p.Size()/4 {
		t.Errorf("%d bytes of lines are kept in %d, packed %t", p.Size(), len(p.Text), p.Packed)
	}
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

// large is a batch of more than a few lines, one of them without a time.
func large(count int) message.Joined {
	b := message.Joined{Batch: message.Batch{Endpoint: endpoint, Hostname: "WS-01", IP: "192.0.2.7", Received: received.Truncate(time.Microsecond), Generation: 1714979289123}, Count: count}
	for n := range count {
		b.Text = fmt.Appendf(b.Text, "{\"n\":%d,\"pad\":\"%s\"}\n", n, strings.Repeat("text ", 100))
		b.Times = append(b.Times, received.Add(time.Duration(n)*time.Second))
	}
	b.Times[1] = time.Time{}
	return b
}

// What does not hold together is no message of INTAKE.
func TestIntakeDamaged(t *testing.T) {
	for name, damage := range map[string]func(*message.Joined){
		"more lines than announced":     func(b *message.Joined) { b.Count--; b.Times = b.Times[1:] },
		"fewer lines than announced":    func(b *message.Joined) { b.Count++; b.Times = nil },
		"the last line is not ended":    func(b *message.Joined) { b.Text = bytes.TrimSuffix(b.Text, []byte{'\n'}); b.Count-- },
		"packed lines that are damaged": func(b *message.Joined) { *b = b.Keep(); b.Text[len(b.Text)/2] ^= 0xff },
		"packed lines that are cut off": func(b *message.Joined) { *b = b.Keep(); b.Text = b.Text[:len(b.Text)-1] },
		"packed lines without end":      func(b *message.Joined) { b.Text, b.Packed = s2.Encode(nil, make([]byte, 8<<20)), true },
		"lines that are not packed":     func(b *message.Joined) { b.Packed = true },
	} {
		b := large(40)
		damage(&b)
		m := message.IntakeMsg("ONE", []message.Joined{b})
		if list, err := message.ParseIntake(m.Header, m.Data); err == nil {
			t.Errorf("%s: %d batches", name, len(list))
		}
	}
}

// Times of events come with what is joined, to the nanosecond, and not where a
// part has none.
func TestTimes(t *testing.T) {
	parts := []message.Joined{large(40), large(3).Keep()}
	parts[0].Times[2] = received.Add(-time.Hour + time.Nanosecond)
	want := slices.Concat(parts[0].Times, parts[1].Times)
	check := func(parts []message.Joined, want []time.Time) {
		t.Helper()
		m, err := message.Join(parts)
		if err != nil {
			t.Fatal(err)
		}
		b, _, err := message.ParseBatch(m.Subject, m.Header, m.Data, nil)
		if err != nil || !slices.EqualFunc(b.Times, want, time.Time.Equal) {
			t.Errorf("%d lines, times %s, %v, want %s", len(b.Lines), b.Times, err, want)
		}
		for _, broken := range []string{"!", "AA", "CgEB", m.Header.Get(message.HeaderTimes) + "AAAA"} {
			m.Header.Set(message.HeaderTimes, broken)
			if got, _, err := message.ParseBatch(m.Subject, m.Header, m.Data, nil); err == nil {
				t.Errorf("times %q: %s", broken, got.Times)
			}
		}
	}
	check(parts, want)
	// Nor where one is so far away, from 1970 or from another one, that it cannot be
	// carried.
	near := slices.Clone(parts[0].Times)
	parts[0].Times[0], parts[0].Times[2] = time.Unix(0, 1<<62), time.Unix(0, -1<<62)
	check(parts, nil)
	parts[0].Times = near
	parts[0].Times[0] = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
	check(parts, nil)
	parts[0].Times = nil
	check(parts, nil)
}

func FuzzTimes(f *testing.F) {
	f.Add("BwECAw", 3)
	f.Fuzz(func(t *testing.T, text string, count int) {
		if count < 1 || count > 50 {
			return
		}
		line := []byte(strings.Repeat("x", 9<<10) + "\n")
		b := message.Batch{Endpoint: endpoint, Received: received}
		m := b.BatchMsg(bytes.Repeat(line, count), count)
		m.Header.Set(message.HeaderTimes, text)
		got, _, err := message.ParseBatch(m.Subject, m.Header, m.Data, nil)
		if err != nil || text == "" {
			return
		}
		b.Times = got.Times
		m = b.BatchMsg(bytes.Repeat(line, count), count)
		again, _, err := message.ParseBatch(m.Subject, m.Header, m.Data, nil)
		if err != nil || !slices.EqualFunc(got.Times, again.Times, time.Time.Equal) {
			t.Errorf("%q: %s became %s, %v", text, got.Times, again.Times, err)
		}
	})
}

// Lines that come together in one message keep the order and the time in which
// they were received.
func TestJoin(t *testing.T) {
	parts := taken()
	m, err := message.Join(parts)
	if err != nil {
		t.Fatal(err)
	}
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
	one, err := message.Join(parts[1:2])
	if err != nil {
		t.Fatal(err)
	}
	same := parts[1].BatchMsg(parts[1].Text, parts[1].Count)
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
