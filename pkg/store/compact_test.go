package store

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
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

// A small store runs no compactors, is compacted all the same when enough has
// been written, and keeps what it holds.
func TestSmallStoreIsCompactedSeldom(t *testing.T) {
	db, err := Open(Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if n := db.Opts().NumCompactors; n != 0 {
		t.Errorf("%d compactors", n)
	}
	values, value := fill(t, db, minTables)
	db.stopped.Go(func() { db.compactSeldom(time.Millisecond, nil) })
	for end := time.Now().Add(30 * time.Second); db.Levels()[0].NumTables >= minTables; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not compacted: %+v", db.Levels())
		}
	}
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

// Few new tables are not worth rewriting all others.
func TestCompactionIsWorthIt(t *testing.T) {
	const table = 4 << 20
	for _, tc := range []struct {
		fresh, rest int
		due         bool
	}{
		{0, 0, false}, {minTables - 1, 0, false}, {minTables, 0, true}, {minTables, minTables * maxRatio, true},
		{minTables, minTables*maxRatio + 1, false}, {minTables + 1, minTables*maxRatio + 1, true},
	} {
		levels := []badger.LevelInfo{
			{Level: 0, NumTables: tc.fresh, Size: int64(tc.fresh) * table},
			{Level: 5, Size: int64(tc.rest/2) * table},
			{Level: 6, Size: int64(tc.rest-tc.rest/2) * table},
		}
		if due := compactionDue(levels); due != tc.due {
			t.Errorf("%d new tables, %d others: %t", tc.fresh, tc.rest, due)
		}
	}
}

// A store that has become large has compactors of its own.
func TestLargeStoreHasCompactors(t *testing.T) {
	dir := t.TempDir()
	table := filepath.Join(dir, "000099.sst") // of no content, Badger drops it
	if err := os.WriteFile(table, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(table, maxFlattened); err != nil {
		t.Fatal(err)
	}
	db, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if n := db.Opts().NumCompactors; n < 2 {
		t.Errorf("%d compactors", n)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}
