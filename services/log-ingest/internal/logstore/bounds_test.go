package logstore

import (
	"cmp"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
)

// TestSelection holds a selection against sorting everything: the page is the
// longest beginning that fits, whatever the order of offers.
func TestSelection(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 60).Draw(t, "lines")
		offers := make([]item, n)
		for i := range offers {
			offers[i] = item{pos: Pos{Hour: int64(rapid.IntRange(0, 2).Draw(t, "hour")), Off: int64(rapid.IntRange(0, 3).Draw(t, "off")), Arrival: uint64(i)},
				size: uint32(rapid.SampledFrom([]int{1, 2, 10, 40, 200}).Draw(t, "size"))}
		}
		offers = rapid.Permutation(offers).Draw(t, "order")
		s := selection{maxItems: rapid.IntRange(1, 30).Draw(t, "most"), maxBytes: rapid.IntRange(1, 150).Draw(t, "bytes")}
		want := slices.Clone(offers)
		slices.SortFunc(want, func(a, b item) int { return a.pos.Compare(b.pos) })
		fits, bytes := 0, 0
		for fits < len(want) && fits < s.maxItems && (fits == 0 || bytes+int(want[fits].size) <= s.maxBytes) {
			bytes += int(want[fits].size)
			fits++
		}
		for i := range offers {
			if s.ends(offers[i].pos) && slices.Contains(want[:fits], offers[i]) {
				t.Fatalf("line %v is said not to fit", offers[i].pos)
			}
			s.offer(&offers[i])
			if len(s.items) > s.maxItems {
				t.Fatalf("%d lines kept, at most %d", len(s.items), s.maxItems)
			}
		}
		if got := s.sorted(); !slices.Equal(got, want[:fits]) || s.cut != (fits < len(want)) {
			t.Fatalf("got %v, cut %v, want %v", got, s.cut, want[:fits])
		}
	})
}

// TestForgottenChunks repeats each line of an hour, alone, after the oldest
// chunks have been forgotten.
func TestForgottenChunks(t *testing.T) {
	f := newFixture(openStore(t), Events, 1<<20)
	base := time.Date(2025, 6, 1, 0, 0, 0, 0, time.UTC)
	for n := range maxRecent + 1 {
		start := base.Add(time.Duration(n) * time.Hour)
		for i := range maxRecent + 1 {
			f.write(t, []input{numbered(start.Add(time.Duration(i)*time.Second), i)})
		}
		v, _ := f.writer.cache.get(cacheKey{id: chunkID{endpoint: endpoint, hour: At(start, 0).Hour}})
		if kept := len(v.(*hourState).chunks); kept != keepRecent {
			t.Fatalf("%d chunks kept, want %d", kept, keepRecent)
		}
		f.write(t, []input{numbered(start.Add(time.Duration(n)*time.Second), n)})
	}
}

// TestHourState holds what a state says of the chunks over a time against a
// plain list.
func TestHourState(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		state := newHourState()
		var all []span
		for n := range rapid.IntRange(1, 120).Draw(t, "chunks") {
			from := int64(rapid.IntRange(0, 100).Draw(t, "min"))
			s := span{id: chunkID{first: uint64(n)}, min: from, max: from + int64(rapid.SampledFrom([]int{0, 0, 1, 3, 50}).Draw(t, "length"))}
			all = append(all, s)
			state = state.clone()
			state.add(s)
			state.seal()
			if rapid.Bool().Draw(t, "trim") {
				state.trim()
			}
		}
		for off := state.floor + 1; off <= 151; off++ {
			var got, want []uint64
			state.over(off, func(s *span) bool { got = append(got, s.id.first); return true })
			for _, s := range all {
				if s.min <= off && off <= s.max {
					want = append(want, s.id.first)
				}
			}
			slices.SortFunc(got, cmp.Compare)
			if !slices.Equal(got, want) {
				t.Fatalf("over %d: chunks %v, want %v", off, got, want)
			}
		}
	})
}

// TestCacheBound holds that a cache counts what it holds, and no more.
func TestCacheBound(t *testing.T) {
	const bound = 100_000
	c := newCache(bound)
	set := func(n int) *hashSet {
		h := &hashSet{set: map[event.Hash]struct{}{}}
		for i := range n {
			h.set[event.Hash{byte(i), byte(i >> 8)}] = struct{}{}
		}
		return h
	}
	key := func(n int) cacheKey { return cacheKey{id: chunkID{hour: int64(n)}} }
	for n := range 1000 {
		c.put(key(0), set(n%5))
	}
	if c.lru.Len() != 1 || c.used > 1000 {
		t.Errorf("one value put again and again: %d values, %d bytes", c.lru.Len(), c.used)
	}
	for n := range 1000 {
		c.put(key(n), set(n%100))
		if c.used > bound || len(c.sizes) != c.lru.Len() {
			t.Fatalf("%d bytes, %d values, %d sizes", c.used, c.lru.Len(), len(c.sizes))
		}
	}
	if c.lru.Len() < 20 {
		t.Errorf("only %d values within %d bytes", c.lru.Len(), bound)
	}
	c.put(key(-1), set(10_000))
	if _, ok := c.get(key(-1)); !ok || c.lru.Len() != 1 {
		t.Errorf("a value larger than the bound: kept %v, %d values", ok, c.lru.Len())
	}
	c.put(key(1), set(1))
	if c.lru.Len() != 1 || c.used > 1000 {
		t.Errorf("behind it: %d values, %d bytes", c.lru.Len(), c.used)
	}
}
