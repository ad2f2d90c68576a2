package store

import (
	"time"
	_ "unsafe" // go:linkname

	"github.com/dgraph-io/badger/v4"

	"github.com/nightjar-edr/nightjar/pkg/beat"
)

// Each of Badger's compactors wakes 20 times a second whether there is work or
// not, and a store has two of them at the least. They rest when there was nothing
// to compact for restAfter.
const (
	// lookEvery is how often it is looked whether there is something to compact,
	// lookOften of stores that are Large.
	lookEvery = 10 * time.Second
	lookOften = 2 * time.Second
	restAfter = 5 * time.Second
)

// Badger stops its compactors before it flattens a store, and starts them again
// after, with these. It exports nothing that does only that.

//go:linkname stopCompactors github.com/dgraph-io/badger/v4.(*DB).stopCompactions
func stopCompactors(*badger.DB)

//go:linkname startCompactors github.com/dgraph-io/badger/v4.(*DB).startCompactions
func startCompactors(*badger.DB)

// compact lets the compactors rest while there is nothing to compact, until the
// store is closed.
func (db *DB) compact(every, after time.Duration) {
	worked := time.Time{} // they rest at once where a store has nothing to compact
	for {
		if compactionDue(db.Levels()) {
			worked = time.Now()
			db.rest(false)
		} else if time.Since(worked) > after {
			db.rest(true)
		}
		select {
		case <-db.stop:
			return
		case <-time.After(beat.Next(every)):
		}
	}
}

// rest stops the compactors or lets them work.
func (db *DB) rest(rest bool) {
	db.compacting.Lock()
	defer db.compacting.Unlock()
	switch {
	case rest && !db.resting:
		stopCompactors(db.DB)
	case !rest && db.resting:
		startCompactors(db.DB)
	}
	db.resting = rest
}

// Flatten is Badger's, which starts the compactors in the end.
func (db *DB) Flatten(workers int) error {
	db.compacting.Lock()
	defer db.compacting.Unlock()
	db.resting = false
	return db.DB.Flatten(workers)
}

// compactionDue tells whether a level has so much that Badger's compactors would
// move some of it.
func compactionDue(levels []badger.LevelInfo) bool {
	for _, l := range levels {
		if l.Score >= 1 {
			return true
		}
	}
	return false
}
