package logstore

import (
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

// waitUntil returns when a time in Unix seconds has passed.
func waitUntil(at uint64) {
	for uint64(time.Now().Unix()) < at {
		time.Sleep(10 * time.Millisecond)
	}
}

// beforeExpiry runs f with a time of expiry, in Unix seconds, that has not
// come when f returns, and waits for it. Where f takes longer, it is run again
// with a later one.
func beforeExpiry(t *testing.T, life uint64, f func(expires uint64)) {
	t.Helper()
	for ; life <= 256; life *= 4 {
		at := uint64(time.Now().Unix()) + life
		f(at)
		if uint64(time.Now().Unix()) < at {
			waitUntil(at)
			return
		}
	}
	t.Fatal("what should expire is never written before it does")
}

// TestSweep holds that what has expired is deleted once, and nothing else.
func TestSweep(t *testing.T) {
	base := time.Date(2025, 6, 1, 12, 0, 0, 0, time.UTC)
	lines := func(from, to int, timed bool, expires uint64) (out []Entry) {
		for n := from; n < to; n++ {
			l := fmt.Appendf(nil, "line %d", n)
			out = append(out, Entry{Endpoint: endpoint, Time: base.Add(time.Duration(n) * time.Minute), Timed: timed,
				Hash: event.HashOf(l), Arrival: uint64(n), Expires: expires, Line: l})
		}
		return out
	}
	var db *store.DB
	var w *Writer
	early := 0
	beforeExpiry(t, 2, func(soon uint64) {
		db = openStore(t)
		w = NewWriter(db, Events, 1<<20)
		put(t, db, w, 1, lines(0, 180, true, soon))        // three hours: an index and a body each
		put(t, db, w, 2, lines(300, 310, false, soon))     // and ten hashes
		put(t, db, w, 3, lines(400, 410, true, 0))         // for ever
		put(t, db, w, 4, lines(500, 510, false, soon+900)) // for longer
		var err error
		if early, err = Sweep(background, db); err != nil {
			t.Fatal(err)
		}
	})
	if early != 0 {
		t.Fatalf("before anything has expired: %d deleted", early)
	}
	// An untimed line comes again before the sweep.
	if n := put(t, db, w, 5, lines(300, 301, false, 0)); n != 1 {
		t.Fatalf("%d lines stored again, want 1", n)
	}
	const want = 2*3 + 2*1 + 9
	if n, err := Sweep(background, db); err != nil || n != want {
		t.Fatalf("%d deleted, %v, want %d", n, err, want)
	}
	if n, err := Sweep(background, db); err != nil || n != 0 {
		t.Fatalf("a second time: %d deleted, %v", n, err)
	}
	q := Query{Endpoint: endpoint, Kind: Events}
	q.Between(time.Time{}, time.Time{})
	if got := readAll(t, db, q); len(got) != 21 || got[0] != "line 300" {
		t.Errorf("%d lines are left, want 21: %q", len(got), got)
	}
	w = NewWriter(db, Events, 1<<20)
	again := append(append(lines(300, 301, false, 0), lines(400, 410, true, 0)...), lines(500, 510, false, 0)...)
	if n := put(t, db, w, 6, again); n != 0 {
		t.Errorf("%d of the lines that are left were stored again", n)
	}
}

// TestSweepFreesSpace holds that the space of what has expired is used again
// though nothing is ever written to its hours any more.
func TestSweepFreesSpace(t *testing.T) {
	var db *store.DB
	var w *Writer
	random := rand.NewChaCha8([32]byte{1})
	seq := uint64(0)
	fill := func(hour, transactions int, expires uint64) {
		for n := range transactions {
			seq++
			entries := make([]Entry, 200)
			for i := range entries {
				l := make([]byte, 2500)
				if _, err := random.Read(l); err != nil {
					t.Fatal(err)
				}
				entries[i] = Entry{Endpoint: endpoint, Time: time.Unix(int64(hour+n)*3600+int64(i), 0), Timed: true,
					Hash: event.Hash(l), Arrival: seq<<9 + uint64(i), Expires: expires, Line: l}
			}
			put(t, db, w, seq, entries)
		}
	}
	const transactions = 40 // half a megabyte each
	beforeExpiry(t, 5, func(soon uint64) {
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
		db = &store.DB{DB: opened}
		w = NewWriter(db, Events, 1<<20)
		fill(1000, transactions, soon)
		if err := db.Flatten(1); err != nil { // to where tables rest
			t.Fatal(err)
		}
	})
	if n, err := Sweep(background, db); err != nil || n != 2*transactions {
		t.Fatalf("%d deleted, %v, want %d", n, err, 2*transactions)
	}
	fill(5000, transactions, 0)
	if err := db.Flatten(1); err != nil {
		t.Fatal(err)
	}
	size := int64(0)
	for _, l := range db.Levels() {
		size += l.Size
	}
	if written := int64(transactions * 200 * 2500); size > written*5/4 {
		t.Errorf("the store has %d MB where %d MB have not expired", size>>20, written>>20)
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
