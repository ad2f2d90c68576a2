package gateway

import (
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"

	"github.com/nightjar-edr/nightjar/pkg/store"
)

// Prefixes of the keys in the store. What follows is the key of the bucket.
const (
	prefixEndpoint = "e/"
	prefixDeleted  = "d/" // endpoints that were deleted
	prefixAccess   = "a/"
)

// load calls f for each key under a prefix, without the prefix. The value is
// valid during the call only.
func load(db *store.DB, prefix string, f func(key string, value []byte) error) error {
	err := db.View(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{PrefetchValues: true, PrefetchSize: 100, Prefix: []byte(prefix)})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			item := it.Item()
			key := string(item.Key()[len(prefix):])
			if err := item.Value(func(v []byte) error { return f(key, v) }); err != nil {
				return fmt.Errorf("key %q: %w", key, err)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read store: %w", err)
	}
	return nil
}

// has tells whether a key is in the store.
func has(db *store.DB, key string) (found bool, err error) {
	err = db.View(func(txn *badger.Txn) error {
		_, err := txn.Get([]byte(key))
		if errors.Is(err, badger.ErrKeyNotFound) {
			return nil
		}
		found = err == nil
		return err
	})
	if err != nil {
		return false, fmt.Errorf("read store: %w", err)
	}
	return found, nil
}

// put writes or, for a nil value, deletes a key.
func put(txn *badger.Txn, key string, value []byte) error {
	if value != nil {
		return txn.Set([]byte(key), value)
	}
	if err := txn.Delete([]byte(key)); err != nil && !errors.Is(err, badger.ErrKeyNotFound) {
		return err
	}
	return nil
}
