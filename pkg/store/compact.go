package store

import (
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// Each of Badger's compactors wakes 20 times a second whether there is work or
// not, and there are two of them for each store at the least. A store that has
// little to compact does without them and is looked at every compactEvery.
const (
	compactEvery = 10 * time.Second
	// maxFlattened is the size in bytes from which on a store that is opened
	// has compactors: below, a compaction rewrites all of it.
	maxFlattened = 256 << 20
	// A store is compacted when minTables have been written since the last
	// time, and they hold a part of at least 1/maxRatio of the rest, so that on
	// average a byte is rewritten about maxRatio times.
	minTables = 5
	maxRatio  = 4
)

// tableBytes returns the size of the tables in a folder.
func tableBytes(dir string) (int64, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err != nil {
		return 0, err
	}
	total := int64(0)
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			return 0, err
		}
		total += info.Size()
	}
	return total, nil
}

// compactSeldom compacts the store where it is due, until it is closed.
func (db *DB) compactSeldom(every time.Duration, log *slog.Logger) {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-db.stop:
			return
		case <-t.C:
		}
		if !compactionDue(db.Levels()) {
			continue
		}
		if err := db.Flatten(1); err != nil && log != nil {
			log.Warn("store not compacted, tried again later", "dir", db.Opts().Dir, "error", err)
		}
	}
}

// compactionDue tells whether so many tables have been written that merging
// them with the rest is worth it.
func compactionDue(levels []badger.LevelInfo) bool {
	var fresh, rest int64
	tables := 0
	for _, l := range levels {
		if l.Level == 0 {
			fresh, tables = l.Size, l.NumTables
		} else {
			rest += l.Size
		}
	}
	return tables >= minTables && fresh*maxRatio >= rest
}
