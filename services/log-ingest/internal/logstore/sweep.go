package logstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/nightjar-edr/nightjar/pkg/store"
)

// Bounds of one step of a sweep.
const (
	sweepVisits  = 50_000
	sweepDeletes = 1000
)

// Sweep deletes what has expired and returns how many entries it deleted.
// Nobody sees expired entries, but Badger gives their space back only when
// something else makes it rewrite the tables they are in, which for old hours
// never happens. Deletions do. Lines may be written meanwhile.
func Sweep(ctx context.Context, db *store.DB) (deleted int, err error) {
	for _, prefix := range []byte{prefixIndex, prefixHash} {
		for from := []byte{prefix}; from != nil; {
			if err := ctx.Err(); err != nil {
				return deleted, err
			}
			var keys [][]byte
			if keys, from, err = expired(db, prefix, from); err != nil {
				return deleted, fmt.Errorf("look for what has expired: %w", err)
			}
			n, err := deleteExpired(db, keys)
			if err != nil {
				return deleted, fmt.Errorf("delete what has expired: %w", err)
			}
			deleted += n
		}
	}
	return deleted, nil
}

// expired returns keys from one on that begin with prefix and have expired
// without being deleted, and the key to go on from, nil at the end.
func expired(db *store.DB, prefix byte, from []byte) (keys [][]byte, next []byte, err error) {
	txn := db.NewTransaction(false)
	defer txn.Discard()
	it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte{prefix}, AllVersions: true})
	defer it.Close()
	var last []byte
	visits := 0
	for it.Seek(from); it.Valid(); it.Next() {
		item := it.Item()
		if bytes.Equal(item.Key(), last) {
			continue // an earlier version
		}
		if visits++; visits > sweepVisits || len(keys) >= sweepDeletes {
			return keys, item.KeyCopy(nil), nil
		}
		last = append(last[:0], item.Key()...)
		// A deleted key has no time of expiry.
		if at := item.ExpiresAt(); at != 0 && at <= uint64(time.Now().Unix()) {
			keys = append(keys, item.KeyCopy(nil))
		}
	}
	return keys, nil, nil
}

// deleteExpired deletes keys, and the bodies that belong to indexes among
// them, unless they were written again meanwhile.
func deleteExpired(db *store.DB, keys [][]byte) (int, error) {
	if len(keys) == 0 {
		return 0, nil
	}
	txn := db.NewTransaction(true)
	defer txn.Discard()
	n := 0
	for _, key := range keys {
		if _, err := txn.Get(key); err == nil {
			continue
		} else if !errors.Is(err, badger.ErrKeyNotFound) {
			return 0, err
		}
		both := [][]byte{key}
		if key[0] == prefixIndex {
			body, err := bodyOf(key)
			if err != nil {
				return 0, err
			}
			both = append(both, body)
		}
		for _, k := range both {
			if err := txn.Delete(k); err != nil {
				return 0, err
			}
			n++
		}
	}
	if err := txn.Commit(); errors.Is(err, badger.ErrConflict) {
		return 0, nil // left for the next sweep
	} else if err != nil {
		return 0, err
	}
	return n, nil
}

// bodyOf returns the key of the body that belongs to the key of an index.
func bodyOf(index []byte) ([]byte, error) {
	if len(index) < 3 || len(index) < 3+int(index[2]) {
		return nil, fmt.Errorf("%w: %d bytes", errKey, len(index))
	}
	s, err := parseIndexKey(index, string(index[3:3+int(index[2])]))
	if err != nil {
		return nil, err
	}
	return s.id.bodyKey(Kind(index[1])), nil
}
