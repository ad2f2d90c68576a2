package logstore

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var background = context.Background()

// TestModel writes transactions of lines in any order, with repetitions,
// equal times, hours and days that meet, and restarts between, and holds what
// is read with every page size against a plain list.
func TestModel(t *testing.T) {
	bases := []time.Time{
		time.Date(2024, 3, 9, 23, 59, 59, 999_999_998, time.UTC), // the last moments of a day
		time.Date(2024, 3, 10, 1, 0, 0, 0, time.FixedZone("", -5*3600)),
		time.Date(1969, 12, 31, 23, 59, 59, 999_999_999, time.UTC),
		time.Date(1, 1, 1, 0, 0, 0, 0, time.FixedZone("", 3600)),
		time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
	}
	db := openStore(t)
	steps := []time.Duration{0, 1, 2, time.Second, 59 * time.Minute, time.Hour, time.Hour + 1}
	runs := 0
	rapid.Check(t, func(t *rapid.T) {
		kind := rapid.SampledFrom([]Kind{Events, Alerts}).Draw(t, "kind")
		f := newFixture(db, kind, rapid.SampledFrom([]int{1, 4096, 1 << 20}).Draw(t, "cache"))
		runs++
		f.endpoint = fmt.Sprintf("%08x%s", runs, endpoint[8:])
		moment := rapid.Custom(func(t *rapid.T) time.Time {
			return rapid.SampledFrom(bases).Draw(t, "base").Add(rapid.SampledFrom(steps).Draw(t, "step"))
		})
		for range rapid.IntRange(1, 40).Draw(t, "transactions") {
			switch rapid.IntRange(0, 9).Draw(t, "between") {
			case 0:
				f.restart()
			case 1:
				f.merge(t)
			}
			var in []input
			for range rapid.IntRange(1, 12).Draw(t, "lines") {
				at := moment.Draw(t, "time")
				n := rapid.IntRange(0, 5).Draw(t, "n")
				l := numbered(at, n)
				if rapid.IntRange(0, 4).Draw(t, "untimed") == 0 {
					l = input{at: at, line: fmt.Sprintf(`{"untimed":%d}`, n)}
				}
				in = append(in, l)
			}
			f.write(t, in)
		}
		if rapid.Bool().Draw(t, "merged at last") {
			f.merge(t)
		}
		for limit := 0; limit < 8; limit++ {
			f.check(t, time.Time{}, time.Time{}, 0, limit)
		}
		for range 5 {
			f.check(t, moment.Draw(t, "start"), time.Time{}, 0, 0)
			f.check(t, time.Time{}, moment.Draw(t, "stop"), 0, 3)
			f.check(t, moment.Draw(t, "start"), moment.Draw(t, "stop"), rapid.IntRange(0, 30).Draw(t, "skip"), rapid.IntRange(0, 9).Draw(t, "limit"))
		}
	})
}

// TestRepeatedAcrossTransactions repeats lines of an hour that many
// transactions have written to, in order, shuffled and all at one moment.
func TestRepeatedAcrossTransactions(t *testing.T) {
	base := time.Date(2025, 6, 1, 12, 0, 0, 0, time.UTC)
	const transactions, each = 80, 25
	for name, at := range map[string]func(r *rand.Rand, n int) time.Time{
		"in order": func(_ *rand.Rand, n int) time.Time { return base.Add(time.Duration(n) * 100 * time.Millisecond) },
		"nearly": func(r *rand.Rand, n int) time.Time {
			return base.Add(time.Duration(n+r.IntN(60)) * 100 * time.Millisecond)
		},
		"shuffled":      func(r *rand.Rand, _ int) time.Time { return base.Add(time.Duration(r.Int64N(int64(time.Hour)))) },
		"clock stopped": func(*rand.Rand, int) time.Time { return base },
		"backwards": func(_ *rand.Rand, n int) time.Time {
			return base.Add(59*time.Minute - time.Duration(n)*100*time.Millisecond)
		},
	} {
		for _, c := range []struct {
			cache int
			merge bool
		}{{1, false}, {32 << 10, false}, {8 << 20, false}, {1, true}, {8 << 20, true}} {
			t.Run(fmt.Sprintf("%s, cache %d, merged %t", name, c.cache, c.merge), func(t *testing.T) {
				r := rand.New(rand.NewPCG(1, 2))
				f := newFixture(openStore(t), Events, c.cache)
				var all []input
				for n := range transactions {
					if c.merge && n%20 == 19 {
						f.merge(t)
					}
					var in []input
					for range each {
						in = append(in, numbered(at(r, len(all)), len(all)))
						all = append(all, in[len(in)-1])
					}
					// Some lines of before come along.
					for range 5 {
						in = append(in, all[r.IntN(len(all))])
					}
					f.write(t, in)
				}
				f.restart()
				f.write(t, all)
				if len(f.model) != transactions*each {
					t.Fatalf("the model holds %d lines, want %d", len(f.model), transactions*each)
				}
				f.check(t, time.Time{}, time.Time{}, 0, 0)
				f.check(t, base.Add(10*time.Second), base.Add(100*time.Second), 7, 100)
			})
		}
	}
}

// TestCrowdedHour holds that the chunks that must be looked through for a
// repetition are few, whatever the times are.
func TestCrowdedHour(t *testing.T) {
	base := time.Date(2025, 6, 1, 12, 0, 0, 0, time.UTC)
	f := newFixture(openStore(t), Events, 1<<20)
	for n := range 5 * crowd {
		f.write(t, []input{numbered(base, n), numbered(base.Add(time.Duration(n)*time.Second), 1000+n)})
	}
	txn := f.db.NewTransaction(false)
	defer txn.Discard()
	state, err := f.writer.loadHour(txn, endpoint, At(base, 0).Hour)
	if err != nil {
		t.Fatal(err)
	}
	over := 0
	state.over(0, func(*span) bool { over++; return true })
	if over == 0 || over > crowd {
		t.Errorf("%d chunks to look through, want 1 to %d", over, crowd)
	}
	if state.keyedMax < 0 {
		t.Error("no chunk has its hashes as keys")
	}
}

// TestBounds holds that both bounds are exclusive, to the nanosecond.
func TestBounds(t *testing.T) {
	base := time.Date(2025, 6, 1, 12, 0, 0, 0, time.UTC)
	f := newFixture(openStore(t), Events, 1<<20)
	f.write(t, []input{numbered(base.Add(-1), 0), numbered(base, 1), numbered(base.Add(1), 2), numbered(base.Add(2), 3)})
	for _, c := range []struct {
		start, stop time.Time
		want        int
	}{
		{time.Time{}, time.Time{}, 4},
		{base.Add(-1), base.Add(2), 2},
		{base.Add(-2), base.Add(3), 4},
		{base, base.Add(1), 0},
		{base, base, 0},
		{base.Add(1), base, 0},
		{base.In(time.FixedZone("", 7*3600)), time.Time{}, 2},
		{time.Time{}, base, 1},
	} {
		q := Query{Endpoint: endpoint, Kind: Events}
		q.Between(c.start, c.stop)
		if got := readAll(t, f.db, q); len(got) != c.want {
			t.Errorf("between %v and %v: %d lines, want %d", c.start, c.stop, len(got), c.want)
		}
		f.check(t, c.start, c.stop, 0, 1)
	}
}

// TestOtherEndpoints holds that names that begin alike and kinds do not mix.
func TestOtherEndpoints(t *testing.T) {
	f := newFixture(openStore(t), Events, 1<<20)
	f.write(t, []input{numbered(time.Now(), 1)})
	for _, q := range []Query{
		{Endpoint: endpoint, Kind: Alerts},
		{Endpoint: endpoint[:35], Kind: Events},
		{Endpoint: endpoint + "0", Kind: Events},
		{Endpoint: strings.ToUpper(endpoint), Kind: Events},
	} {
		q.Between(time.Time{}, time.Time{})
		if got := readAll(t, f.db, q); len(got) != 0 {
			t.Errorf("%s %c: %d lines, want none", q.Endpoint, q.Kind, len(got))
		}
	}
}

// TestLongLines holds that lines that do not fit beside each other in a chunk
// or a page are given one by one, whole.
func TestLongLines(t *testing.T) {
	base := time.Date(2025, 6, 1, 12, 0, 0, 0, time.UTC)
	r := rand.New(rand.NewPCG(3, 4))
	f := newFixture(openStore(t), Events, 1<<20)
	var in []input
	for n, size := range []int{10, 4 << 20, 10, 400 << 10, 400 << 10, 400 << 10, MaxPageBytes - 1, MaxPageBytes, 1, 4 << 20} {
		var text strings.Builder
		for text.Len() < size {
			fmt.Fprintf(&text, "%016x", r.Uint64())
		}
		in = append(in, input{at: base.Add(time.Duration(n) * time.Second), timed: true, line: text.String()[:size]})
	}
	f.write(t, in)
	f.check(t, time.Time{}, time.Time{}, 0, 0)
	f.write(t, in)
	f.check(t, base, time.Time{}, 2, 0)
}

// TestDetectionsFit holds that a page stays within its bounds when its events
// are shown with detections that are much longer than they are, and that only
// the alert of the same time and hash is shown.
func TestDetectionsFit(t *testing.T) {
	base := time.Date(2025, 6, 1, 12, 0, 0, 0, time.UTC)
	db := openStore(t)
	events, alerts := NewWriter(db, Events, 1<<20), NewWriter(db, Alerts, 1<<20)
	var plain, marked []Entry
	var want []string
	for n := range 200 {
		e := Entry{Endpoint: endpoint, Time: base.Add(time.Duration(n/10) * time.Second), Timed: true, Arrival: uint64(n), Line: fmt.Appendf(nil, "event %d", n)}
		e.Hash[0] = byte(n)
		plain = append(plain, e)
		want = append(want, string(e.Line))
		a := e
		a.Line = fmt.Appendf(nil, "alert %d %s", n, strings.Repeat("x", 50<<10))
		switch n % 4 {
		case 0: // of this event
			want[n] = string(a.Line)
		case 1: // of another event of the same time
			a.Hash[1] = 1
		case 2: // of another time
			a.Time = a.Time.Add(time.Nanosecond)
		case 3:
			continue
		}
		marked = append(marked, a)
	}
	put(t, db, events, 1, plain)
	put(t, db, alerts, 1, marked)
	q := Query{Endpoint: endpoint, Kind: Events, Detections: true}
	q.Between(time.Time{}, time.Time{})
	check := func(merged string) {
		t.Helper()
		for limit := range 4 {
			q.Limit = limit * 7
			got := readAll(t, db, q)
			if !slices.Equal(got, want) {
				t.Fatalf("%s merged, limit %d: %d lines, want %d, or others", merged, q.Limit, len(got), len(want))
			}
		}
	}
	check("nothing")
	mergeAll(t, alerts)
	check("alerts")
	mergeAll(t, events)
	check("both")
	again := NewWriter(db, Alerts, 1<<20)
	if err := again.Forget(endpoint, 1); err != nil {
		t.Fatal(err)
	}
	put(t, db, again, 2, marked)
	check("events")
}
