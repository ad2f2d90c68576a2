package store_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/nightjar-edr/nightjar/pkg/store"
)

func open(t *testing.T, o store.Options) *store.DB {
	t.Helper()
	db, err := store.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// get returns the value of a key.
func get(db *store.DB, key string) (value []byte, err error) {
	err = db.View(func(txn *badger.Txn) error {
		item, err := txn.Get([]byte(key))
		if err != nil {
			return err
		}
		value, err = item.ValueCopy(nil)
		return err
	})
	return value, err
}

func options(t *testing.T) map[string]store.Options {
	t.Helper()
	return map[string]store.Options{
		"small":         {Dir: filepath.Join(t.TempDir(), "not", "there", "yet")},
		"small in sync": {Dir: t.TempDir(), Sync: true},
		"large":         {Dir: t.TempDir(), Large: true},
		"large in sync": {Dir: t.TempDir(), Large: true, Sync: true},
	}
}

// Values on both sides of the thresholds, beyond which they lie in the value
// log, are stored and read back, before and after the store was closed.
func TestValues(t *testing.T) {
	sizes := []int{0, 1, 256<<10 - 1, 256 << 10, 256<<10 + 1, 1<<20 - 1, 1 << 20, 1<<20 + 1}
	value := func(size int) []byte { return bytes.Repeat([]byte(fmt.Sprintf("%08d", size)), size/8+1)[:size] }
	for name, o := range options(t) {
		t.Run(name, func(t *testing.T) {
			read := func(db *store.DB) {
				t.Helper()
				for _, size := range sizes {
					got, err := get(db, fmt.Sprintf("size/%d", size))
					if err != nil || !bytes.Equal(got, value(size)) {
						t.Errorf("value of %d bytes: %d bytes, %v", size, len(got), err)
					}
				}
			}
			db, err := store.Open(o)
			if err != nil {
				t.Fatal(err)
			}
			for _, size := range sizes {
				if err := db.Update(func(txn *badger.Txn) error { return txn.Set([]byte(fmt.Sprintf("size/%d", size)), value(size)) }); err != nil {
					t.Errorf("value of %d bytes: %v", size, err)
				}
			}
			read(db)
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			read(open(t, o))
		})
	}
}

// A store that is opened knows the size that it has on disk.
func TestSize(t *testing.T) {
	for name, o := range options(t) {
		t.Run(name, func(t *testing.T) {
			db, err := store.Open(o)
			if err != nil {
				t.Fatal(err)
			}
			const values, size = 16, 64 << 10
			wb := db.NewWriteBatch()
			for i := range values {
				v := bytes.Repeat([]byte{byte(i)}, size)
				for j := range v { // nothing that a compression makes small
					v[j] ^= byte((i*size + j) * 2654435761 >> 13)
				}
				if err := wb.Set([]byte{byte(i)}, v); err != nil {
					t.Fatal(err)
				}
			}
			if err := wb.Flush(); err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			lsm, vlog := open(t, o).Size()
			if lsm <= 0 || lsm+vlog < size {
				t.Errorf("size %d and %d bytes of values", lsm, vlog)
			}
		})
	}
}

// A store whose process was killed while it made a file, which is empty then, is
// opened and holds what it held.
func TestFilesCutOff(t *testing.T) {
	values := map[string][]byte{"small": []byte("v"), "large": bytes.Repeat([]byte("v"), 2<<20)}
	for name, o := range options(t) {
		for _, files := range [][]string{{"00002.mem"}, {"000002.vlog"}, {"00002.mem", "00003.mem", "000002.vlog", "000003.vlog"}} {
			t.Run(name+" "+strings.Join(files, " "), func(t *testing.T) {
				live := o
				live.Dir = t.TempDir()
				db := open(t, live)
				for key, value := range values {
					if err := db.Update(func(txn *badger.Txn) error { return txn.Set([]byte(key), value) }); err != nil {
						t.Fatal(err)
					}
				}
				// What a process that is killed leaves are the files as they are now.
				cut := live
				cut.Dir = t.TempDir()
				if err := os.CopyFS(cut.Dir, os.DirFS(live.Dir)); err != nil {
					t.Fatal(err)
				}
				for _, file := range files {
					f, err := os.OpenFile(filepath.Join(cut.Dir, file), os.O_CREATE|os.O_EXCL, 0o600)
					if err != nil {
						t.Fatal(err)
					}
					if err := f.Close(); err != nil {
						t.Fatal(err)
					}
				}
				for range 2 {
					db, err := store.Open(cut)
					if err != nil {
						t.Fatal(err)
					}
					for key, value := range values {
						if got, err := get(db, key); err != nil || !bytes.Equal(got, value) {
							t.Errorf("%s: %d bytes, %v", key, len(got), err)
						}
					}
					if err := db.Close(); err != nil {
						t.Fatal(err)
					}
				}
			})
		}
	}
}

func TestOpenFails(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if db, err := store.Open(store.Options{Dir: file}); err == nil || !strings.Contains(err.Error(), "store "+file) {
		t.Errorf("got %v, %v", db, err)
	}
}

// Badger's own messages reach the log at their level.
func TestLog(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	db, err := store.Open(store.Options{Dir: t.TempDir(), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		if !strings.Contains(line, `"component":"badger"`) || !strings.Contains(line, `"level":"DEBUG"`) {
			t.Errorf("line %s", line)
		}
	}
	if out.Len() == 0 {
		t.Error("nothing was logged")
	}
}

// Collecting ends with its context and leaves what is stored alone.
func TestCollectGarbage(t *testing.T) {
	db := open(t, store.Options{Dir: t.TempDir()})
	value := bytes.Repeat([]byte("v"), 300<<10)
	for range 3 {
		if err := db.Update(func(txn *badger.Txn) error { return txn.Set([]byte("key"), value) }); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { store.CollectGarbage(ctx, db, time.Millisecond); close(done) }()
	for range 100 {
		if got, err := get(db, "key"); err != nil || !bytes.Equal(got, value) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
	cancel()
	<-done
}

// A store that others write anew in place of what they delete gives the space of
// that back when it is closed, whatever it holds.
func TestClosedStoreHoldsWhatIsLive(t *testing.T) {
	o := store.Options{Dir: t.TempDir(), Large: true}
	const values, size = 200, 128 << 10 // 25 MB
	write := func(round byte) {
		db, err := store.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		for n := range values {
			i := n * 73 % values // all over the store, as endpoints are
			value := make([]byte, size)
			if _, err := rand.Read(value); err != nil {
				t.Fatal(err)
			}
			if err := db.Update(func(txn *badger.Txn) error {
				if round > 0 {
					if err := txn.Delete([]byte{byte(i), round - 1}); err != nil {
						return err
					}
				}
				return txn.Set([]byte{byte(i), round}, value)
			}); err != nil {
				t.Fatal(err)
			}
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for round := range byte(2) {
		write(round)
	}
	total := int64(0)
	for _, l := range open(t, o).Levels() {
		total += l.Size
	}
	if total > values*size*11/10 {
		t.Errorf("%d bytes of tables for %d bytes of values", total, values*size)
	}
}
