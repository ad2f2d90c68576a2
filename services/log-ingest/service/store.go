package ingest

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/dgraph-io/badger/v4"

	"github.com/nightjar-edr/nightjar/pkg/store"
)

// ErrPartitions means that the store was built for other partitions than the
// ones that are owned now. It must be deleted to be built again.
var ErrPartitions = errors.New("the store was built for other partitions")

// partitionsKey holds the partitions that the store was built for, as a list
// in JSON.
var partitionsKey = []byte("\x00partitions")

// openStore opens the store and holds the owned partitions against the ones
// it was built for: what an added partition received before would be missing.
func openStore(cfg *Config, own *partitionSet) (*badger.DB, error) {
	db, err := store.Open(store.Options{Dir: cfg.DataDir, Sync: cfg.Sync, Large: true, Log: cfg.Log})
	if err != nil {
		return nil, err
	}
	err = db.Update(func(txn *badger.Txn) error {
		item, err := txn.Get(partitionsKey)
		if errors.Is(err, badger.ErrKeyNotFound) {
			value, err := json.Marshal(own.list())
			if err != nil {
				return err
			}
			return txn.Set(partitionsKey, value)
		} else if err != nil {
			return err
		}
		return item.Value(func(b []byte) error {
			var built []int
			if err := json.Unmarshal(b, &built); err != nil {
				return err
			}
			if !slices.Equal(built, own.list()) {
				return fmt.Errorf("%w: %v, now %v", ErrPartitions, built, own.list())
			}
			return nil
		})
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("store %s: %w", cfg.DataDir, err), db.Close())
	}
	return db, nil
}
