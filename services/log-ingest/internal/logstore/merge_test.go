package logstore

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/store"
)

var noon = time.Date(2025, 6, 1, 12, 0, 0, 0, time.UTC)

// mergeAll merges everything of a writer's kind.
func mergeAll(t failer, w *Writer) Merged {
	t.Helper()
	done, err := w.Merge(background, Merging{Owns: everybody, Exclusive: alone, Quiet: 1, Step: noRest})
	if err != nil {
		t.Fatalf("merge: %v", err)
	}
	return done
}

// chunks returns the chunks of an endpoint in the order of their keys.
func chunks(t failer, db *store.DB, kind Kind) (all []span) {
	t.Helper()
	err := db.View(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: appendPrefix(nil, prefixIndex, kind, endpoint)})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			s, err := parseIndexKey(it.Item().Key(), endpoint)
			if err != nil {
				return err
			}
			all = append(all, s)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("chunks: %v", err)
	}
	return all
}

func waiting(t *testing.T, db *store.DB, want int) {
	t.Helper()
	if n, err := NewReader(db).Waiting(Events); n != want || err != nil {
		t.Errorf("%d hours wait to be merged, %v, want %d", n, err, want)
	}
}

// TestMergeFillsChunks holds that the chunks of an hour become full ones, and
// that those are not written again.
func TestMergeFillsChunks(t *testing.T) {
	f := newFixture(openStore(t), Events, 1<<20)
	n := 0
	add := func(lines int) {
		var in []input
		for range lines {
			n++
			in = append(in, numbered(noon.Add(time.Duration(n)*100*time.Millisecond), n))
		}
		f.write(t, in)
	}
	for range 150 {
		add(30)
	}
	f.write(t, []input{numbered(noon.Add(-time.Hour), 1)})
	waiting(t, f.db, 2)
	if done := f.merge(t); done.Read != 151 || done.Written != 4 {
		t.Errorf("%+v, want 151 chunks to become 4", done)
	}
	var counts []uint32
	for _, s := range chunks(t, f.db, Events) {
		counts = append(counts, s.count)
		if !s.merged || s.full != (s.count == maxChunkLines) {
			t.Errorf("chunk of %d lines: merged %t, full %t", s.count, s.merged, s.full)
		}
	}
	if want := []uint32{1, maxChunkLines, maxChunkLines, 150*30 - 2*maxChunkLines}; !slices.Equal(counts, want) {
		t.Errorf("chunks of %d lines, want %d", counts, want)
	}
	waiting(t, f.db, 0)
	if done := f.merge(t); done != (Merged{}) {
		t.Errorf("merged again: %+v", done)
	}
	add(1)
	waiting(t, f.db, 1)
	if done := f.merge(t); done.Read != 2 || done.Written != 1 {
		t.Errorf("%+v, want the chunk that is not full and one more to become 1", done)
	}
	f.check(t, time.Time{}, time.Time{}, 0, 0)
	if c, err := NewReader(f.db).Count(Events, endpoint); err != nil || c != int64(len(f.model)) {
		t.Errorf("%d lines counted, %v, want %d", c, err, len(f.model))
	}
}

// TestMergeWaits holds that an hour is merged when nothing has come for a while,
// and for longer where there is little to merge.
func TestMergeWaits(t *testing.T) {
	for _, c := range []struct {
		chunks int
		quiet  time.Duration
		want   bool
	}{
		{mergeFresh, time.Minute - time.Second, false}, {mergeFresh, time.Minute, true}, {mergeFresh - 1, time.Minute, false},
		{1, mergeLate*time.Minute - time.Second, false}, {1, mergeLate * time.Minute, true},
	} {
		f := newFixture(openStore(t), Events, 1<<20)
		for n := range c.chunks {
			f.write(t, []input{numbered(noon.Add(time.Duration(n)*time.Second), n)})
		}
		v, _ := f.writer.cache.get(cacheKey{id: chunkID{endpoint: endpoint, hour: At(noon, 0).Hour}})
		v.(*hourState).written = time.Now().Add(-c.quiet)
		done, err := f.writer.Merge(background, Merging{Owns: everybody, Exclusive: alone, Quiet: time.Minute, Step: noRest})
		if err != nil || (done.Read > 0) != c.want {
			t.Errorf("%d chunks, the last one %s ago: %d merged, %v", c.chunks, c.quiet, done.Read, err)
		}
	}
	f := newFixture(openStore(t), Events, 1<<20)
	f.write(t, []input{numbered(noon, 1)})
	done, err := f.writer.Merge(background, Merging{Owns: func(string) bool { return false }, Exclusive: alone, Quiet: 1, Step: noRest})
	if err != nil || done.Read != 0 {
		t.Errorf("%d chunks of another's endpoint merged, %v", done.Read, err)
	}
}

// TestMergeSomeHours holds that a bounded merge tells of what it has left, and that
// the next one goes on with it.
func TestMergeSomeHours(t *testing.T) {
	f := newFixture(openStore(t), Events, 1<<20)
	for n := range 5 {
		f.write(t, []input{numbered(noon.Add(time.Duration(n)*time.Hour), n)})
	}
	for _, want := range []struct {
		read, waiting int
		more          bool
	}{{2, 3, true}, {2, 1, true}, {1, 0, false}, {0, 0, false}} {
		done, err := f.writer.Merge(background, Merging{Owns: everybody, Exclusive: alone, Step: noRest, Hours: 2})
		if err != nil || done.Read != want.read || done.More != want.more {
			t.Errorf("merged %+v, %v, want %+v", done, err, want)
		}
		waiting(t, f.db, want.waiting)
	}
}

// TestMergeMeanwhile holds that what happens to an hour between the reading of
// its chunks and the commit of what they become is not undone.
func TestMergeMeanwhile(t *testing.T) {
	lines := func(from, to int) (in []input) {
		for n := from; n < to; n++ {
			in = append(in, numbered(noon.Add(time.Duration(n)*time.Second), n))
		}
		return in
	}
	for name, c := range map[string]struct {
		happens        func(f *fixture) error
		left, waiting  int
		repeated, anew []input
	}{
		"a line comes": {func(f *fixture) error { f.write(t, lines(50, 51)); return nil }, 41, 1, append(lines(0, 40), lines(50, 51)...), nil},
		"a removal":    {func(f *fixture) error { return f.writer.Forget(endpoint, 1) }, 0, 0, nil, lines(0, 20)},
		"a sweep": {func(f *fixture) error {
			_, err := f.writer.Sweep(background, 21, everybody, alone)
			return err
		}, 20, 1, lines(20, 40), lines(0, 20)},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(openStore(t), Events, 1<<20)
			put(t, f.db, f.writer, 20, entriesOf(lines(0, 20), 20))
			put(t, f.db, f.writer, 40, entriesOf(lines(20, 40), 40))
			f.seq = 100
			for _, l := range lines(0, 40) {
				f.seen[l.line] = true
			}
			calls := 0
			_, err := f.writer.Merge(background, Merging{Owns: everybody, Quiet: 1, Step: noRest, Exclusive: func(commit func() error) error {
				if calls++; calls == 3 { // behind due and the beginning of the hour
					if err := c.happens(f); err != nil {
						t.Fatal(err)
					}
				}
				return commit()
			}})
			if err != nil || calls < 3 {
				t.Fatalf("merge: %v, %d calls", err, calls)
			}
			q := Query{Endpoint: endpoint, Kind: Events}
			q.Between(time.Time{}, time.Time{})
			if got := readAll(t, f.db, q); len(got) != c.left {
				t.Errorf("%d lines, want %d", len(got), c.left)
			}
			waiting(t, f.db, c.waiting)
			mergeAll(t, f.writer)
			if got := readAll(t, f.db, q); len(got) != c.left {
				t.Errorf("merged again: %d lines, want %d", len(got), c.left)
			}
			waiting(t, f.db, 0)
			if n := put(t, f.db, f.writer, 200, entriesOf(c.repeated, 200)); n != 0 {
				t.Errorf("%d lines stored again", n)
			}
			if n := put(t, f.db, f.writer, 201, entriesOf(c.anew, 201)); n != len(c.anew) {
				t.Errorf("%d lines stored anew, want %d", n, len(c.anew))
			}
		})
	}
}

// entriesOf returns lines as those of a message.
func entriesOf(in []input, seq uint64) (out []Entry) {
	for i, l := range in {
		out = append(out, Entry{Endpoint: endpoint, Time: l.at, Timed: l.timed, Hash: event.HashOf([]byte(l.line)),
			Arrival: seq<<ArrivalBits | uint64(i), Line: []byte(l.line)})
	}
	return out
}

// TestSweepMerged holds that of a merged chunk just the lines go that retention
// has removed, and that they may come again from the moment on at which they are
// to go.
func TestSweepMerged(t *testing.T) {
	db := openStore(t)
	w := NewWriter(db, Events, 1<<20)
	lines := func(seq int) (in []input) {
		for n := range 10 {
			l := numbered(noon.Add(time.Duration(seq*10+n)*time.Second), seq*10+n)
			l.timed = n%2 == 0
			in = append(in, l)
		}
		return in
	}
	for seq := 1; seq <= 20; seq++ {
		put(t, db, w, uint64(seq), entriesOf(lines(seq), uint64(seq)))
	}
	mergeAll(t, w)
	if all := chunks(t, db, Events); len(all) != 1 {
		t.Fatalf("%d chunks, want 1", len(all))
	}
	if n := put(t, db, w, 100, entriesOf(lines(5), 100)); n != 0 {
		t.Fatalf("%d lines stored again", n) // the writer has the hashes in memory
	}
	left := func(want int) {
		t.Helper()
		q := Query{Endpoint: endpoint, Kind: Events}
		q.Between(time.Time{}, time.Time{})
		if got := readAll(t, db, q); len(got) != want {
			t.Fatalf("%d lines are left, want %d", len(got), want)
		}
		if c, err := NewReader(db).Count(Events, endpoint); err != nil || c != int64(want) {
			t.Fatalf("%d lines counted, %v, want %d", c, err, want)
		}
	}
	for range 2 {
		if _, err := w.Sweep(background, 11, everybody, func(f func() error) error {
			if n := put(t, db, w, 101, entriesOf(lines(5), 101)); n > 0 && n != 10 {
				t.Errorf("%d of 10 lines that are to go were stored again", n)
			}
			return f()
		}); err != nil {
			t.Fatal(err)
		}
		left(110) // ten messages and what has come again
	}
	if n := put(t, db, w, 102, append(entriesOf(lines(11), 102), entriesOf(lines(20), 102)...)); n != 0 {
		t.Errorf("%d lines that are left were stored again", n)
	}
	mergeAll(t, w)
	left(110)
	if n, err := w.Sweep(background, 200, everybody, alone); err != nil || n == 0 {
		t.Fatalf("%d deleted, %v", n, err)
	}
	left(0)
}

// TestMergeUnderLoad holds that readers find every line that is stored, in order
// and once, while lines are written, merged and written again.
func TestMergeUnderLoad(t *testing.T) {
	const transactions, each = 300, 20
	db := openStore(t)
	w := NewWriter(db, Events, 256<<10)
	var writing sync.Mutex
	exclusive := func(f func() error) error {
		writing.Lock()
		defer writing.Unlock()
		return f()
	}
	line := func(n int) input { return numbered(noon.Add(time.Duration(n)*50*time.Millisecond), n) }
	ended := make(chan struct{})
	var work sync.WaitGroup
	work.Go(func() {
		for merging := true; merging; {
			select {
			case <-ended:
				merging = false
			default:
			}
			if _, err := w.Merge(background, Merging{Owns: everybody, Exclusive: exclusive, Quiet: 1, Step: noRest}); err != nil {
				t.Error(err)
				return
			}
		}
	})
	stored := make(chan int, transactions)
	work.Go(func() {
		for n := range stored {
			q := Query{Endpoint: endpoint, Kind: Events, Limit: 700}
			q.Between(time.Time{}, line(n).at)
			got := readAll(t, db, q)
			if len(got) != n {
				t.Errorf("%d lines before line %d", len(got), n)
				return
			}
			for i, l := range got {
				if l != line(i).line {
					t.Errorf("line %d is %.60q", i, l)
					return
				}
			}
		}
	})
	r := rand.New(rand.NewPCG(1, 2))
	for n := range transactions {
		var in []input
		for i := range each {
			in = append(in, line(n*each+i))
		}
		for range 10 {
			in = append(in, line(r.IntN((n+1)*each)))
		}
		_ = exclusive(func() error {
			if got := put(t, db, w, uint64(n+1), entriesOf(in, uint64(n+1))); got != each {
				t.Errorf("transaction %d: %d lines stored, want %d", n, got, each)
			}
			return nil
		})
		if n%10 == 0 {
			stored <- (n + 1) * each
		}
	}
	close(ended)
	close(stored)
	work.Wait()
	waiting(t, db, 0)
	if all := chunks(t, db, Events); len(all) > 2*transactions*each/maxChunkLines {
		t.Errorf("%d chunks for %d lines", len(all), transactions*each)
	}
}

// TestMergeAndSweepAtOnce holds that just what retention has removed is gone in the
// end, whatever was merged meanwhile.
func TestMergeAndSweepAtOnce(t *testing.T) {
	const messages, each, kept = 400, 10, 150
	db := openStore(t)
	w := NewWriter(db, Events, 1<<20)
	var writing sync.Mutex
	exclusive := func(f func() error) error {
		writing.Lock()
		defer writing.Unlock()
		return f()
	}
	var work sync.WaitGroup
	ended, written := make(chan struct{}), make(chan uint64, messages)
	work.Go(func() {
		for {
			if _, err := w.Merge(background, Merging{Owns: everybody, Exclusive: exclusive, Quiet: 1, Step: noRest}); err != nil {
				t.Error(err)
			}
			select {
			case <-ended:
				return
			default:
			}
		}
	})
	work.Go(func() {
		for seq := range written {
			if seq <= kept || seq%7 > 0 && seq < messages {
				continue
			}
			if _, err := w.Sweep(background, seq-kept+1, everybody, exclusive); err != nil {
				t.Error(err)
			}
		}
	})
	for seq := uint64(1); seq <= messages; seq++ {
		var in []input
		for i := range each { // those of later messages lie between them
			in = append(in, numbered(noon.Add(time.Duration(i)*time.Minute+time.Duration(seq)*time.Millisecond), int(seq)*each+i))
		}
		_ = exclusive(func() error { put(t, db, w, seq, entriesOf(in, seq)); return nil })
		written <- seq
	}
	close(written)
	close(ended)
	work.Wait()
	mergeAll(t, w)
	if _, err := w.Sweep(background, messages-kept+1, everybody, exclusive); err != nil {
		t.Fatal(err)
	}
	q := Query{Endpoint: endpoint, Kind: Events}
	q.Between(time.Time{}, time.Time{})
	if got := readAll(t, db, q); len(got) != kept*each {
		t.Errorf("%d lines are left, want %d", len(got), kept*each)
	}
	waiting(t, db, 0)
}

// TestMergeFreesSpace holds that merging makes a store smaller that is closed.
func TestMergeFreesSpace(t *testing.T) {
	dir := t.TempDir()
	db, err := store.Open(store.Options{Dir: dir, Large: true})
	if err != nil {
		t.Fatal(err)
	}
	w := NewWriter(db, Events, 1<<20)
	sample := benchLines(20_000)
	for n := 0; n < len(sample); n += 20 {
		var in []input
		for i := range 20 {
			in = append(in, input{at: noon.Add(time.Duration(n+i) * 10 * time.Millisecond), timed: true, line: string(sample[n+i])})
		}
		put(t, db, w, uint64(n+1), entriesOf(in, uint64(n+1)))
	}
	values := 0
	if err := db.View(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			values += int(it.Item().ValueSize())
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	mergeAll(t, w)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	size := int64(0)
	files, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	for _, f := range files {
		info, serr := os.Stat(f)
		if err = errors.Join(err, serr); serr == nil {
			size += info.Size()
		}
	}
	if err != nil || size == 0 || size > int64(values)*7/10 {
		t.Errorf("%d bytes of tables, %v, want at most seven tenths of %d", size, err, values)
	}
}

// TestMergedIndexGolden pins the form of the index of a merged chunk: stores of
// an earlier version are read by a later one.
func TestMergedIndexGolden(t *testing.T) {
	lines, _ := sampleIndex()
	b, err := hex.DecodeString(strings.ReplaceAll(mergedSample, "\n", ""))
	if err != nil {
		t.Fatal(err)
	}
	r, err := newIndexReader(b)
	if err != nil {
		t.Fatal(err)
	}
	if !r.merged() || r.lines() != len(lines) {
		t.Fatalf("merged %t, %d lines", r.merged(), r.lines())
	}
	for i := range lines {
		if !r.next() {
			t.Fatalf("line %d is missing: %v", i, r.err)
		}
		l := &lines[i]
		if r.last.off != l.pos.Off || r.last.arrival != l.pos.Arrival || int(r.last.size) != len(l.line)+1 ||
			!bytes.Equal(r.last.hash[:tagSize], l.hash[:tagSize]) {
			t.Errorf("line %d: %v, want %v", i, r.last, l)
		}
	}
	if r.next() || r.err != nil {
		t.Errorf("behind the last line: %v, %v", r.last, r.err)
	}
	if again, err := newIndexReader(appendMergedIndex(nil, lines)); err != nil || again.lines() != len(lines) {
		t.Errorf("written again: %v", err)
	}
}

const mergedSample = `0204ca978112ca1bbdca3e23e8160039594a2e7d2c03a9507ae218ac3e7343f0168928b52ffd0400a10000000e02050703000701fabfe285e36802818080021314005f`

// TestTags holds that the tags of a store are its own, and the same after a new
// start.
func TestTags(t *testing.T) {
	db := openStore(t)
	hash := event.HashOf([]byte("a line"))
	first := &tagger{db: db}
	if known, err := first.load(false); known || err != nil {
		t.Fatalf("a new store has a key: %t, %v", known, err)
	}
	tags := map[event.Hash]bool{}
	for _, d := range []*store.DB{db, db, openStore(t)} {
		g := &tagger{db: d}
		if known, err := g.load(true); !known || err != nil {
			t.Fatalf("no key: %v", err)
		}
		tag := g.tag(hash)
		if fmt.Sprintf("%x", tag[tagSize:]) != "0000000000000000" || bytes.Equal(tag[:tagSize], hash[:tagSize]) {
			t.Errorf("tag %x of %x", tag, hash)
		}
		tags[tag] = true
	}
	if len(tags) != 2 {
		t.Errorf("%d tags of the same line in two stores, want 2", len(tags))
	}
}
