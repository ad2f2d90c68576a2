package logstore

import (
	"errors"
	"math"
	"testing"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
)

func sampleIndex() ([]entry, []byte) {
	lines := []entry{
		{pos: Pos{Off: 0, Arrival: 7}, hash: event.HashOf([]byte("a")), line: []byte("a")},
		{pos: Pos{Off: 5, Arrival: 3}, hash: event.HashOf([]byte("b")), line: []byte("bb")},
		{pos: Pos{Off: 5, Arrival: math.MaxUint64}, hash: event.HashOf([]byte("c")), line: nil},
		{pos: Pos{Off: hourLength - 1, Arrival: 0}, hash: event.HashOf([]byte("d")), line: make([]byte, 4<<20)},
	}
	return lines, appendIndex(nil, lines)
}

// TestIndexGolden pins the form of an index: stores of an earlier version are
// read by a later one.
func TestIndexGolden(t *testing.T) {
	_, b := sampleIndex()
	const want = "a0275d2bd6aae2bad9010d988a2b9403"
	if got := event.HashOf(b).String(); got != want {
		t.Errorf("the form of an index has changed: its hash is %s, want %s", got, want)
	}
}

func TestIndexRoundTrip(t *testing.T) {
	lines, b := sampleIndex()
	r, err := newIndexReader(b)
	if err != nil {
		t.Fatal(err)
	}
	from := uint32(0)
	for i := range lines {
		if !r.next() {
			t.Fatalf("line %d is missing: %v", i, r.err)
		}
		want := indexed{lines[i].pos.Off, lines[i].pos.Arrival, lines[i].hash, from, uint32(len(lines[i].line) + 1)}
		if r.last != want {
			t.Errorf("line %d: got %v, want %v", i, r.last, want)
		}
		from += want.size
	}
	if r.next() || r.err != nil {
		t.Errorf("behind the last line: %v, %v", r.last, r.err)
	}
	for n := range b {
		if r, err := newIndexReader(b[:n]); err == nil {
			for r.next() {
			}
			if r.err == nil {
				t.Errorf("an index cut off at byte %d is read as whole", n)
			}
		}
	}
}

func FuzzChunkDecode(f *testing.F) {
	_, b := sampleIndex()
	f.Add(b)
	f.Add([]byte{indexVersion, 0})
	f.Add([]byte{indexVersion, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := newIndexReader(b)
		if err != nil {
			return
		}
		n, last := 0, indexed{}
		for r.next() {
			if r.last.off < last.off || r.last.off >= hourLength || r.last.size == 0 || r.last.from != last.from+last.size {
				t.Fatalf("line %d: %v behind %v", n, r.last, last)
			}
			last = r.last
			if n++; n > len(b) {
				t.Fatal("more lines than bytes")
			}
		}
	})
}

func FuzzIndexKey(f *testing.F) {
	s := span{id: chunkID{endpoint: endpoint, hour: -5, first: 9, sub: 2}, min: 1, max: 2, keyed: true, count: 3}
	f.Add(s.indexKey(Events))
	f.Fuzz(func(t *testing.T, key []byte) {
		s, err := parseIndexKey(key, endpoint)
		if err == nil && (s.min < 0 || s.max < s.min || s.max >= hourLength) {
			t.Fatalf("%v is within no hour", s)
		}
	})
}

func TestKeys(t *testing.T) {
	for _, want := range []span{
		{id: chunkID{endpoint: endpoint, hour: math.MinInt64}, count: 1},
		{id: chunkID{endpoint: endpoint, hour: 12, first: math.MaxUint64, sub: math.MaxUint16}, min: 4, max: hourLength - 1, keyed: true, count: math.MaxUint32},
	} {
		got, err := parseIndexKey(want.indexKey(Events), endpoint)
		if err != nil || got != want {
			t.Errorf("got %v, %v, want %v", got, err, want)
		}
	}
}

func TestCursor(t *testing.T) {
	for _, at := range []time.Time{{}, time.Unix(0, -1), time.Now(), time.Date(9999, 12, 31, 23, 59, 59, 999_999_999, time.UTC)} {
		want := At(at, 42)
		got, err := ParseCursor(want.Cursor())
		if err != nil || got != want {
			t.Errorf("got %v, %v, want %v", got, err, want)
		}
		if !got.Time().Equal(at) {
			t.Errorf("time %v, want %v", got.Time(), at)
		}
	}
	whole := At(time.Now(), 1).Cursor()
	for _, bad := range []string{"", "x", whole + "A", whole[:len(whole)-1], "!" + whole[1:], "B" + whole[1:],
		Pos{Off: hourLength}.Cursor(), Pos{Off: -1}.Cursor()} {
		if p, err := ParseCursor(bad); !errors.Is(err, ErrCursor) {
			t.Errorf("%q: %v, %v, want ErrCursor", bad, p, err)
		}
	}
}

func FuzzCursor(f *testing.F) {
	f.Add(At(time.Now(), 1).Cursor())
	f.Add("AQ")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParseCursor(s)
		if err != nil {
			return
		}
		if got := p.Cursor(); got != s {
			t.Fatalf("%q is read as %v, which is written %q", s, p, got)
		}
	})
}
