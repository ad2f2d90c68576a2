package logstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"
)

// Bounds of one step of a sweep.
const (
	sweepVisits  = 50_000
	sweepDeletes = 1000
)

// Sweep deletes the lines of messages with a sequence below one, of the
// endpoints that the writer owns, and returns how many entries it deleted. A
// chunk goes when all its lines do; until then those beside a later line stay
// visible. From the call on, what is to go is no reason to pass over a line that
// comes again. Lines may be written meanwhile.
func (w *Writer) Sweep(ctx context.Context, below uint64, owns func(endpoint string) bool) (deleted int, err error) {
	before := below << ArrivalBits
	w.swept.Store(max(before, w.swept.Load()))
	// The hashes go first: a line whose hash is there without its chunk would be
	// taken for a repetition of one that is gone.
	for _, prefix := range []byte{prefixHash, prefixIndex} {
		for from := []byte{prefix, byte(w.kind)}; from != nil; {
			if err := ctx.Err(); err != nil {
				return deleted, err
			}
			var keys [][]byte
			if keys, from, err = w.arrived(prefix, from, before, owns); err != nil {
				return deleted, fmt.Errorf("look for what retention has removed: %w", err)
			}
			n, err := w.delete(keys, before)
			for errors.Is(err, badger.ErrConflict) { // one of them is written again
				n, err = w.delete(keys, before)
			}
			if err != nil {
				return deleted, fmt.Errorf("delete what retention has removed: %w", err)
			}
			deleted += n
		}
	}
	return deleted, nil
}

// arrived returns keys from one on that begin with prefix, are of an owned endpoint
// and whose lines all arrived before, and the key to go on from, nil at the end.
func (w *Writer) arrived(prefix byte, from []byte, before uint64, owns func(string) bool) (keys [][]byte, next []byte, err error) {
	txn := w.db.NewTransaction(false)
	defer txn.Discard()
	it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte{prefix, byte(w.kind)}})
	defer it.Close()
	visits := 0
	for it.Seek(from); it.Valid(); it.Next() {
		item := it.Item()
		if visits++; visits > sweepVisits || len(keys) >= sweepDeletes {
			return keys, item.KeyCopy(nil), nil
		}
		if !owns(endpointOf(item.Key())) {
			continue
		}
		gone, err := allBefore(item, before)
		if err != nil {
			return nil, nil, err
		}
		if gone {
			keys = append(keys, item.KeyCopy(nil))
		}
	}
	return keys, nil, nil
}

// allBefore tells whether all lines that an index or a hash stands for arrived
// before.
func allBefore(item *badger.Item, before uint64) (gone bool, err error) {
	key := item.Key()
	if key[0] == prefixIndex {
		s, err := parseIndexKey(key, endpointOf(key))
		if err != nil || s.id.first >= before>>ArrivalBits {
			return false, err // most indexes need not be read
		}
	}
	return gone, item.Value(func(b []byte) error {
		if key[0] == prefixHash {
			gone = arrivalOf(b) < before
			return nil
		}
		r, err := newIndexReader(b)
		if err != nil {
			return err
		}
		for gone = true; gone && r.next(); {
			gone = r.last.arrival < before
		}
		return r.err
	})
}

// arrivalOf reads the value of a hash.
func arrivalOf(value []byte) uint64 {
	if len(value) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(value)
}

// delete deletes keys, and the bodies that belong to indexes among them, unless
// they were written again meanwhile.
func (w *Writer) delete(keys [][]byte, before uint64) (n int, err error) {
	if len(keys) == 0 {
		return 0, nil
	}
	txn := w.db.NewTransaction(true)
	defer txn.Discard()
	for _, key := range keys {
		item, err := txn.Get(key)
		if errors.Is(err, badger.ErrKeyNotFound) {
			continue
		} else if err != nil {
			return 0, err
		}
		if gone, err := allBefore(item, before); err != nil {
			return 0, err
		} else if !gone {
			continue
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
	if err := txn.Commit(); err != nil {
		return 0, err
	}
	return n, nil
}

// endpointOf returns the endpoint in the key of an index or a hash, empty for one that is
// malformed.
func endpointOf(index []byte) string {
	if len(index) < 3 || len(index) < 3+int(index[2]) {
		return ""
	}
	return string(index[3 : 3+int(index[2])])
}

// bodyOf returns the key of the body that belongs to the key of an index.
func bodyOf(index []byte) ([]byte, error) {
	s, err := parseIndexKey(index, endpointOf(index))
	if err != nil {
		return nil, err
	}
	return s.id.bodyKey(Kind(index[1])), nil
}
