package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

// ErrInUse means that another process has the store open.
var ErrInUse = errors.New("in use by another process")

// A process that is killed between creating a file of a memtable or of values and
// giving it a size leaves it empty. Badger then gives it its size, fails with
// cutFile, and takes the file when it is opened again (its issue 2207). There is
// one such file to a crash, so cutFiles is more than enough.
const (
	cutFile  = "Create a new file"
	cutFiles = 8
)

// Options choose how a store is opened.
type Options struct {
	// Dir is the store's own folder, made if missing.
	Dir string
	// Sync makes every commit wait for stable storage.
	Sync bool
	// Large suits a store of many megabytes a second; otherwise memory is
	// kept small.
	Large bool
	// Log receives Badger's warnings and errors.
	Log *slog.Logger
}

// DB is an open store. Of Badger's methods those that stop and start its compactors
// by themselves, DropAll, DropPrefix and NewStreamWriter, must not be called.
type DB struct {
	*badger.DB
	stop    chan struct{}
	stopped sync.WaitGroup

	// compacting guards resting, which tells that the compactors are stopped.
	compacting sync.Mutex
	resting    bool
}

// Close waits until a compaction in hand has ended and closes the store.
func (db *DB) Close() error {
	close(db.stop)
	db.stopped.Wait()
	return db.DB.Close()
}

// Open opens or creates a store. The caller closes it once.
func Open(o Options) (*DB, error) {
	if o.Large {
		return open(o, lookOften, restAfter)
	}
	return open(o, lookEvery, restAfter)
}

// open opens a store whose compactors rest after some time, and are looked after
// at every interval.
func open(o Options, every, after time.Duration) (*DB, error) {
	if err := os.MkdirAll(o.Dir, 0o750); err != nil {
		return nil, fmt.Errorf("store %s: %w", o.Dir, err)
	}
	opts := badger.DefaultOptions(o.Dir).
		WithSyncWrites(o.Sync).
		WithLogger(badgerLog{o.Log}).
		WithNumCompactors(2).
		WithMetricsEnabled(true). // without them Badger does not know its size
		// A cache wakes the process 24 times a minute, for nothing where the
		// whole store is in the page cache. Compressed blocks would need one.
		WithBlockCacheSize(0).WithCompression(options.None).WithIndexCacheSize(0).
		WithMemTableSize(4 << 20).
		WithValueThreshold(256 << 10).
		WithNumMemtables(2).
		WithNumLevelZeroTablesStall(30). // as compactors may rest when it fills
		WithValueLogFileSize(64 << 20)
	if o.Large {
		// Values are compressed already. Small tables keep the buffers of
		// flushes and compactions small, of which Badger holds up to eight;
		// more of them on level 0 keep writers from waiting. They are compacted
		// into the last level up to its 256 MB: what is deleted keeps its space
		// as long as the deletion waits on a level in between.
		opts = opts.WithMemTableSize(8 << 20).WithValueThreshold(1 << 20).WithBaseTableSize(1 << 20).
			WithNumMemtables(5).WithNumLevelZeroTables(10).WithBaseLevelSize(256 << 20).WithCompactL0OnClose(true).
			WithIndexCacheSize(16 << 20).WithValueLogFileSize(256 << 20)
	}
	db, err := badger.Open(opts)
	for try := 0; try < cutFiles && err != nil && strings.Contains(err.Error(), cutFile); try++ {
		badgerLog{o.Log}.Warningf("a file was cut off while it was made, the store is opened again: %v", err)
		db, err = badger.Open(opts)
	}
	if err != nil {
		if strings.Contains(err.Error(), "Another process is using this Badger database") ||
			strings.Contains(err.Error(), "Cannot acquire directory lock") {
			err = ErrInUse
		}
		return nil, fmt.Errorf("store %s: %w", o.Dir, err)
	}
	d := &DB{DB: db, stop: make(chan struct{})}
	d.stopped.Go(func() { d.compact(every, after) })
	return d, nil
}

// CollectGarbage gives the space of overwritten and expired values back, at
// every interval until ctx ends.
func CollectGarbage(ctx context.Context, db *DB, every time.Duration) {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			for ctx.Err() == nil && db.RunValueLogGC(0.5) == nil {
			}
		}
	}
}

type badgerLog struct{ log *slog.Logger }

func (l badgerLog) write(level slog.Level, f string, a ...any) {
	if l.log != nil {
		l.log.Log(context.Background(), level, strings.TrimSpace(fmt.Sprintf(f, a...)), "component", "badger")
	}
}
func (l badgerLog) Errorf(f string, a ...any)   { l.write(slog.LevelError, f, a...) }
func (l badgerLog) Warningf(f string, a ...any) { l.write(slog.LevelWarn, f, a...) }
func (l badgerLog) Infof(f string, a ...any)    { l.write(slog.LevelDebug, f, a...) }
func (l badgerLog) Debugf(string, ...any)       {}

// Delete deletes keys, in as many transactions as it takes. It returns when all
// of them are committed.
func Delete(db *DB, keys [][]byte) error {
	batch := db.NewWriteBatch()
	defer batch.Cancel()
	for _, key := range keys {
		if err := batch.Delete(key); err != nil {
			return err
		}
	}
	return batch.Flush()
}
