package logstore

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/dgraph-io/badger/v4"

	"github.com/nightjar-edr/nightjar/pkg/store"
)

// dropDeletes bounds one step of Drop.
const dropDeletes = 1000

// Drop deletes all entries of the endpoints for which gone is true, and
// returns how many it deleted. Nobody may write or read lines of these
// endpoints meanwhile; those of others may be. Where it ends early, with the
// error of ctx or of the store, it can be called again.
func Drop(ctx context.Context, db *store.DB, gone func(endpoint string) bool) (deleted int, err error) {
	for _, prefix := range []byte{prefixIndex, prefixBody, prefixHash, prefixFresh, prefixGeneration} {
		for _, kind := range []Kind{Events, Alerts} {
			for from := []byte{prefix, byte(kind)}; from != nil; {
				if err := ctx.Err(); err != nil {
					return deleted, err
				}
				var keys [][]byte
				if keys, from, err = ofGone(ctx, db, from, gone); err != nil {
					return deleted, fmt.Errorf("look for what is to be dropped: %w", err)
				}
				if err := store.Delete(db, keys); err != nil {
					return deleted, fmt.Errorf("drop: %w", err)
				}
				deleted += len(keys)
			}
		}
	}
	return deleted, nil
}

// ofGone returns keys from one on, of the same prefix and kind, whose endpoints
// are gone, and the key to go on from, nil at the end.
func ofGone(ctx context.Context, db *store.DB, from []byte, gone func(endpoint string) bool) (keys [][]byte, next []byte, err error) {
	txn := db.NewTransaction(false)
	defer txn.Discard()
	it := txn.NewIterator(badger.IteratorOptions{Prefix: from[:2]})
	defer it.Close()
	var head []byte
	isGone := false
	for it.Seek(from); it.Valid(); {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		key := it.Item().Key()
		if head == nil || !bytes.HasPrefix(key, head) {
			if len(key) < 3 || len(key) < 3+int(key[2]) {
				return nil, nil, fmt.Errorf("%w: %d bytes", errKey, len(key))
			}
			head = slices.Clone(key[:3+int(key[2])])
			isGone = gone(string(head[3:]))
		}
		if !isGone {
			it.Seek(behind(head))
			continue
		}
		if len(keys) == dropDeletes {
			return keys, slices.Clone(key), nil
		}
		keys = append(keys, slices.Clone(key))
		it.Next()
	}
	return keys, nil, nil
}

// behind returns the first key that is behind all that begin with head, which
// does not consist of 0xff alone.
func behind(head []byte) []byte {
	b := slices.Clone(head)
	for i := len(b) - 1; ; i-- {
		if b[i]++; b[i] != 0 {
			return b[:i+1]
		}
	}
}
