package logstore

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/store"
)

// put writes one transaction.
func put(t *testing.T, db *store.DB, w *Writer, first uint64, entries []Entry) (stored int) {
	t.Helper()
	b := w.Begin(first)
	defer b.Close()
	err := db.Update(func(txn *badger.Txn) error {
		for i := range entries {
			if _, err := b.Add(&entries[i]); err != nil {
				return err
			}
		}
		return b.Write(txn)
	})
	if err != nil {
		t.Fatal(err)
	}
	b.Committed()
	return b.Stored
}

// alone calls a function while nobody writes in any case.
func alone(f func() error) error { return f() }

// everybody owns every endpoint.
func everybody(string) bool { return true }

// TestSweep holds that what arrived before a message is deleted once, and nothing
// else, and is no reason to pass over what comes again.
func TestSweep(t *testing.T) {
	base := time.Date(2025, 6, 1, 12, 0, 0, 0, time.UTC)
	lines := func(from, to int, timed bool, seq uint64) (out []Entry) {
		for n := from; n < to; n++ {
			l := fmt.Appendf(nil, "line %d", n)
			out = append(out, Entry{Endpoint: endpoint, Time: base.Add(time.Duration(n) * time.Minute), Timed: timed,
				Hash: event.HashOf(l), Arrival: seq<<ArrivalBits | uint64(n%512), Line: l})
		}
		return out
	}
	db := openStore(t)
	w, other := NewWriter(db, Events, 1<<20), NewWriter(db, Alerts, 1<<20)
	put(t, db, other, 1, lines(0, 10, true, 1))
	put(t, db, w, 1, lines(0, 180, true, 1))    // three hours: an index and a body each
	put(t, db, w, 2, lines(300, 310, false, 2)) // and ten hashes
	// One transaction of two messages, of which one stays.
	put(t, db, w, 3, append(lines(400, 405, true, 3), lines(405, 410, true, 4)...))
	put(t, db, w, 5, lines(500, 510, false, 5))
	sweep := func(below uint64, want int) {
		t.Helper()
		if n, err := w.Sweep(background, below, everybody, alone); err != nil || n != want {
			t.Fatalf("below %d: %d deleted, %v, want %d", below, n, err, want)
		}
	}
	left := func(want int) {
		t.Helper()
		q := Query{Endpoint: endpoint, Kind: Events}
		q.Between(time.Time{}, time.Time{})
		if got := readAll(t, db, q); len(got) != want {
			t.Fatalf("%d lines are left, want %d: %q", len(got), want, got)
		}
	}
	sweep(1, 0)
	left(210)
	if n, err := NewWriter(db, Events, 1<<20).Sweep(background, 100, func(e string) bool { return e != endpoint }, alone); err != nil || n != 0 {
		t.Fatalf("%d entries of another's endpoint deleted, %v", n, err)
	}
	left(210)
	// The writer has the hashes in memory.
	if n := put(t, db, w, 6, append(lines(100, 110, true, 6), lines(300, 310, false, 6)...)); n != 0 {
		t.Fatalf("%d lines stored again", n)
	}
	sweep(4, 2*3+2*1+10)
	left(20)
	sweep(4, 0)
	if n := put(t, db, w, 7, append(lines(100, 110, true, 7), lines(300, 305, false, 7)...)); n != 15 {
		t.Errorf("%d of 15 lines that had gone were stored again", n)
	}
	if n := put(t, db, NewWriter(db, Events, 1<<20), 8, append(lines(400, 410, true, 8), lines(500, 510, false, 8)...)); n != 0 {
		t.Errorf("%d of the lines that are left were stored again", n)
	}
	left(35)
	sweep(5, 2)
	left(25)
	q := Query{Endpoint: endpoint, Kind: Alerts}
	q.Between(time.Time{}, time.Time{})
	if got := readAll(t, db, q); len(got) != 10 {
		t.Errorf("%d lines of another kind are left, want 10", len(got))
	}
}

// TestSweepCrowded holds that lines whose hashes are keys of the store may come
// again when they are gone, at once and after a new start.
func TestSweepCrowded(t *testing.T) {
	db := openStore(t)
	w := NewWriter(db, Events, 1<<20)
	at := time.Date(2025, 6, 1, 12, 0, 0, 0, time.UTC)
	send := func(n int, seq uint64) int {
		l := fmt.Appendf(nil, "line %d", n)
		return put(t, db, w, seq, []Entry{{Endpoint: endpoint, Time: at, Timed: true, Hash: event.HashOf(l), Arrival: seq << ArrivalBits, Line: l}})
	}
	const lines = 3 * crowd
	for n := range lines {
		send(n, uint64(n+1))
	}
	if _, err := w.Sweep(background, lines, everybody, alone); err != nil {
		t.Fatal(err)
	}
	if n := send(lines-1, 1000); n != 0 {
		t.Error("the line that is left was stored again")
	}
	if n := send(lines-2, 1001); n != 1 {
		t.Error("a line that had gone was not stored again")
	}
	w = NewWriter(db, Events, 1<<20)
	if n := send(lines-3, 1002); n != 1 {
		t.Error("after a new start a line that had gone was not stored again")
	}
}

// TestSweepFreesSpace holds that the space of what was swept is used again
// though nothing is ever written to its hours any more.
func TestSweepFreesSpace(t *testing.T) {
	// Tables that come to rest early, so that little data is enough.
	opened, err := badger.Open(badger.DefaultOptions(t.TempDir()).WithLogger(nil).WithMemTableSize(8 << 20).WithBaseTableSize(1 << 20).
		WithNumLevelZeroTables(1).WithCompression(options.None))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := opened.Close(); err != nil {
			t.Error(err)
		}
	})
	db := &store.DB{DB: opened}
	w := NewWriter(db, Events, 1<<20)
	random := rand.NewChaCha8([32]byte{1})
	seq := uint64(0)
	fill := func(hour, transactions int) {
		for n := range transactions {
			seq++
			entries := make([]Entry, 200)
			for i := range entries {
				l := make([]byte, 2500)
				if _, err := random.Read(l); err != nil {
					t.Fatal(err)
				}
				entries[i] = Entry{Endpoint: endpoint, Time: time.Unix(int64(hour+n)*3600+int64(i), 0), Timed: true,
					Hash: event.Hash(l), Arrival: seq<<ArrivalBits + uint64(i), Line: l}
			}
			put(t, db, w, seq, entries)
		}
	}
	const transactions = 40 // half a megabyte each
	fill(1000, transactions)
	if err := db.Flatten(1); err != nil { // to where tables rest
		t.Fatal(err)
	}
	if n, err := w.Sweep(background, seq+1, everybody, alone); err != nil || n != 2*transactions {
		t.Fatalf("%d deleted, %v, want %d", n, err, 2*transactions)
	}
	fill(5000, transactions)
	if err := db.Flatten(1); err != nil {
		t.Fatal(err)
	}
	size := int64(0)
	for _, l := range db.Levels() {
		size += l.Size
	}
	if written := int64(transactions * 200 * 2500); size > written*5/4 {
		t.Errorf("the store has %d MB where %d MB are left", size>>20, written>>20)
	}
}

// TestReopen holds that a store that was closed answers as before.
func TestReopen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	open := func() *store.DB {
		db, err := store.Open(store.Options{Dir: dir, Large: true})
		if err != nil {
			t.Fatal(err)
		}
		return db
	}
	f := newFixture(open(), Events, 1<<20)
	base := time.Now()
	var all []input
	for n := range 50 {
		all = append(all, numbered(base.Add(time.Duration(n%7)*time.Minute), n))
		f.write(t, all[n:])
	}
	if err := f.db.Close(); err != nil {
		t.Fatal(err)
	}
	f.db = open()
	defer func() {
		if err := f.db.Close(); err != nil {
			t.Error(err)
		}
	}()
	f.restart()
	f.write(t, all)
	f.check(t, time.Time{}, time.Time{}, 0, 0)
}

// TestSweepAndForget holds that what a removal has made be stored again goes by
// its own sequence, that a removal outlives what retention takes, and that the
// two may run at once.
func TestSweepAndForget(t *testing.T) {
	at := time.Date(2025, 6, 1, 12, 0, 0, 0, time.UTC)
	lines := func(seq uint64) (out []Entry) {
		for n := range 2000 {
			l := fmt.Appendf(nil, "line %d", n)
			out = append(out, Entry{Endpoint: endpoint, Time: at.Add(time.Duration(n) * time.Second), Timed: n%2 == 0,
				Hash: event.HashOf(l), Arrival: seq << ArrivalBits, Line: l})
		}
		return out
	}
	db := openStore(t)
	w := NewWriter(db, Events, 1<<20)
	send := func(seq uint64, want int) {
		t.Helper()
		if n := put(t, db, w, seq, lines(seq)); n != want {
			t.Fatalf("%d lines stored by message %d, want %d", n, seq, want)
		}
	}
	send(1, 2000)
	swept := make(chan error)
	go func() {
		_, err := w.Sweep(background, 2, everybody, alone)
		swept <- err
	}()
	err := w.Forget(endpoint, 7)
	if err := errors.Join(err, <-swept); err != nil {
		t.Fatal(err)
	}
	if n := len(keysOf(t, db)); n != 1 || keysOf(t, db)[endpoint] != 1 {
		t.Fatalf("%v entries are left, want that of the generation", keysOf(t, db))
	}
	send(3, 2000)
	if n, err := w.Sweep(background, 3, everybody, alone); n != 0 || err != nil {
		t.Fatalf("%d entries deleted that came behind the mark, %v", n, err)
	}
	send(4, 0)
	if _, err := w.Sweep(background, 5, everybody, alone); err != nil {
		t.Fatal(err)
	}
	w = NewWriter(db, Events, 1<<20)
	if g, err := w.Generations(); err != nil || g[endpoint] != 7 {
		t.Fatalf("generations %v, %v", g, err)
	}
	send(6, 2000)
}
