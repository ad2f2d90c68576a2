package store

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"runtime/pprof"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// fill writes values until the store has n tables on level 0 and returns how
// many values it wrote.
func fill(t *testing.T, db *DB, n int) (values int, value []byte) {
	t.Helper()
	value = make([]byte, 64<<10)
	rand.Read(value)
	for db.Levels()[0].NumTables < n {
		if err := db.Update(func(txn *badger.Txn) error { return txn.Set(fmt.Appendf(nil, "%08d", values), value) }); err != nil {
			t.Fatal(err)
		}
		values++
	}
	return values, value
}

// eventually waits until a store is as it should be.
func eventually(t *testing.T, db *DB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not %s: %+v", what, db.Levels())
		}
	}
}

// rest tells whether no store has compactors at work.
func rest() bool {
	var all bytes.Buffer
	_ = pprof.Lookup("goroutine").WriteTo(&all, 1) // a buffer takes it
	return !bytes.Contains(all.Bytes(), []byte("runCompactor"))
}

// Compactors rest while there is nothing to compact, work when there is, and
// rest again. The store keeps what it holds.
func TestCompactorsRest(t *testing.T) {
	db, err := open(Options{Dir: t.TempDir()}, time.Millisecond, 0)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, db, "at rest", rest)
	tables := db.Opts().NumLevelZeroTables
	values, value := fill(t, db, tables)
	eventually(t, db, "compacted", func() bool { return db.Levels()[0].NumTables < tables })
	eventually(t, db, "at rest again", rest)
	for i := range values {
		if err := db.View(func(txn *badger.Txn) error {
			item, err := txn.Get(fmt.Appendf(nil, "%08d", i))
			if err != nil {
				return err
			}
			return item.Value(func(v []byte) error {
				if !bytes.Equal(v, value) {
					return fmt.Errorf("%d other bytes", len(v))
				}
				return nil
			})
		}); err != nil {
			t.Fatalf("value %d: %v", i, err)
		}
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}

// A store can be closed while its compactors rest, and while they work.
func TestCloseAtAnyTime(t *testing.T) {
	for _, after := range []time.Duration{0, time.Hour} {
		dir := t.TempDir()
		for range 2 {
			db, err := open(Options{Dir: dir}, time.Millisecond, after)
			if err != nil {
				t.Fatal(err)
			}
			if after == 0 {
				eventually(t, db, "at rest", rest)
			}
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// A store whose compactors rest can be flattened. No more of them work afterwards
// than before, and none after it is closed.
func TestFlattenWhileAtRest(t *testing.T) {
	db, err := open(Options{Dir: t.TempDir()}, time.Millisecond, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		eventually(t, db, "at rest", rest)
		fill(t, db, 1)
		if err := db.Flatten(1); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, db, "at rest", rest)
	if err := db.Close(); err != nil {
		t.Error(err)
	}
	if !rest() {
		t.Error("compactors work on a closed store")
	}
}

// A level that is full is reason to compact.
func TestCompactionDue(t *testing.T) {
	for _, tc := range []struct {
		scores []float64
		due    bool
	}{{nil, false}, {[]float64{0, 0}, false}, {[]float64{0.99, 0.5}, false}, {[]float64{1, 0}, true}, {[]float64{0, 1.2}, true}} {
		levels := make([]badger.LevelInfo, len(tc.scores))
		for i, s := range tc.scores {
			levels[i].Score = s
		}
		if due := compactionDue(levels); due != tc.due {
			t.Errorf("%v: %t", tc.scores, due)
		}
	}
}
