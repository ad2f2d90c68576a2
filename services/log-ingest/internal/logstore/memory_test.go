package logstore

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"
)

// TestBoundedMemory pages through many lines of one endpoint whose chunks do
// not lie over each other, all do, or all stand at one moment, and watches
// the heap between the pages.
func TestBoundedMemory(t *testing.T) {
	const (
		lines = 200_000
		group = 8_000
		bound = 32 << 20
	)
	base := time.Date(2025, 6, 1, 12, 0, 0, 0, time.UTC)
	order := rand.New(rand.NewPCG(5, 6)).Perm(lines)
	filler := strings.Repeat("the same words again and again ", 12)
	for name, off := range map[string]func(n int) time.Duration{
		"in order":   func(n int) time.Duration { return time.Duration(n) * 10 * time.Millisecond },
		"shuffled":   func(n int) time.Duration { return time.Duration(order[n]) * 10 * time.Millisecond },
		"one moment": func(int) time.Duration { return 0 },
	} {
		t.Run(name, func(t *testing.T) {
			db := openStore(t)
			f := newFixture(db, Events, 8<<20)
			f.seen = nil // the model would be larger than what is tested
			at := func(n int) time.Time { return base.Add(off(n)) }
			for n := 0; n < lines; n += group {
				b := f.writer.Begin(uint64(n + 1))
				in := make([]Entry, group)
				for i := range in {
					in[i] = Entry{Endpoint: endpoint, Time: at(n + i), Timed: true, Arrival: uint64(n + i + 1),
						Line: fmt.Appendf(nil, `{"at":%d,"n":%d,"text":%q}`, at(n+i).UnixNano(), n+i, filler)}
					in[i].Hash[0], in[i].Hash[1], in[i].Hash[2] = byte(n+i), byte((n+i)>>8), byte((n+i)>>16)
					if _, err := b.Add(&in[i]); err != nil {
						t.Fatal(err)
					}
				}
				txn := db.NewTransaction(true)
				if err := b.Write(txn); err != nil {
					t.Fatal(err)
				}
				if err := txn.Commit(); err != nil {
					t.Fatal(err)
				}
				b.Committed()
				b.Close()
				if b.Repeated != 0 {
					t.Fatalf("%d lines taken for repetitions", b.Repeated)
				}
			}
			q := Query{Endpoint: endpoint, Kind: Events, Detections: true}
			q.Between(time.Time{}, time.Time{})
			r := NewReader(db)
			// Little garbage from here on, so that the heap is what is in use.
			defer debug.SetGCPercent(debug.SetGCPercent(10))
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			before, peak := m.HeapAlloc, m.HeapAlloc
			count, last, lastN := 0, int64(0), -1
			for {
				p, err := r.Page(background, q)
				if err != nil {
					t.Fatal(err)
				}
				for line := range bytes.Lines(p.Lines) {
					var when int64
					var n int
					if _, err := fmt.Sscanf(string(line), `{"at":%d,"n":%d,`, &when, &n); err != nil {
						t.Fatal(err)
					}
					if when < last || (when == last && n <= lastN) {
						t.Fatalf("line %d at %d behind line %d at %d", n, when, lastN, last)
					}
					last, lastN = when, n
				}
				count += p.Count
				runtime.ReadMemStats(&m)
				peak = max(peak, m.HeapAlloc)
				if !p.More {
					break
				}
				q.After = p.Last
			}
			if count != lines {
				t.Errorf("%d lines, want %d", count, lines)
			}
			if peak > before+bound {
				t.Errorf("the heap grew from %d to %d MiB", before>>20, peak>>20)
			}
			t.Logf("heap %d MiB before, at most %d MiB", before>>20, peak>>20)
			q.Between(time.Time{}, time.Time{})
			q.Skip, q.Limit = lines-3, 10
			if p, err := r.Page(background, q); err != nil || p.Count != 3 || p.More {
				t.Errorf("the last 3 lines: %d, %v, %v", p.Count, p.More, err)
			}
		})
	}
}
