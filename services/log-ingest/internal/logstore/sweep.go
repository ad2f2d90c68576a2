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
// merged chunk is written again without them; another one goes when all its lines
// do, until then those beside a later line stay visible. From the call on, what
// is to go is no reason to pass over a line that comes again. Lines may be written
// meanwhile; exclusive calls a function while no batch is in hand.
func (w *Writer) Sweep(ctx context.Context, below uint64, owns func(endpoint string) bool, exclusive func(func() error) error) (deleted int, err error) {
	before := below << ArrivalBits
	w.swept.Store(max(before, w.swept.Load()))
	// The hashes go first: a line whose hash is there without its chunk would be
	// taken for a repetition of one that is gone.
	var own buffers
	for _, prefix := range []byte{prefixHash, prefixIndex} {
		for from := []byte{prefix, byte(w.kind)}; from != nil; {
			if err := ctx.Err(); err != nil {
				return deleted, err
			}
			var keys, partly [][]byte
			if keys, partly, from, err = w.arrived(prefix, from, before, owns); err != nil {
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
			for _, key := range partly {
				// Where it was merged meanwhile, that has left them out.
				if err := w.cut(key, before, &own, exclusive); err != nil && !errors.Is(err, badger.ErrConflict) {
					return deleted, fmt.Errorf("cut what retention has removed: %w", err)
				}
			}
		}
	}
	return deleted, nil
}

// arrived returns keys from one on that begin with prefix, are of an owned endpoint
// and whose lines all arrived before, those of merged chunks of which some did, and
// the key to go on from, nil at the end.
func (w *Writer) arrived(prefix byte, from []byte, before uint64, owns func(string) bool) (keys, partly [][]byte, next []byte, err error) {
	txn := w.db.NewTransaction(false)
	defer txn.Discard()
	it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte{prefix, byte(w.kind)}})
	defer it.Close()
	visits := 0
	for it.Seek(from); it.Valid(); it.Next() {
		item := it.Item()
		if visits++; visits > sweepVisits || len(keys)+len(partly) >= sweepDeletes {
			return keys, partly, item.KeyCopy(nil), nil
		}
		if !owns(endpointOf(item.Key())) {
			continue
		}
		gone, part, err := whichBefore(item, before)
		if err != nil {
			return nil, nil, nil, err
		}
		if gone {
			keys = append(keys, item.KeyCopy(nil))
		} else if part {
			partly = append(partly, item.KeyCopy(nil))
		}
	}
	return keys, partly, nil, nil
}

// whichBefore tells whether all lines that an index or a hash stands for arrived
// before, and whether some of a merged chunk did.
func whichBefore(item *badger.Item, before uint64) (all, some bool, err error) {
	key := item.Key()
	if key[0] == prefixIndex {
		s, err := parseIndexKey(key, endpointOf(key))
		if err != nil || s.id.first >= before>>ArrivalBits {
			return false, false, err // most indexes need not be read
		}
	}
	return all, some, item.Value(func(b []byte) error {
		if key[0] == prefixHash {
			all = arrivalOf(b) < before
			return nil
		}
		r, err := newIndexReader(b)
		if err != nil {
			return err
		}
		for all = true; (all || r.merged() && !some) && r.next(); {
			gone := r.last.arrival < before
			all, some = all && gone, some || gone && r.merged()
		}
		return r.err
	})
}

// cut writes a merged chunk again without the lines that arrived before.
func (w *Writer) cut(key []byte, before uint64, own *buffers, exclusive func(func() error) error) error {
	s, err := parseIndexKey(key, endpointOf(key))
	if err != nil {
		return err
	}
	txn := w.db.NewTransaction(true)
	defer txn.Discard()
	index, err := txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return badger.ErrConflict
	} else if err != nil {
		return err
	}
	body, err := txn.Get(s.id.bodyKey(w.kind))
	if err != nil {
		return fmt.Errorf("body of a chunk: %w", err)
	}
	g := own.group()
	if err := w.read(g, s, index, body, before); err != nil {
		return err
	}
	_, err = w.rewrite(txn, g, before, exclusive)
	return err
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
		if all, _, err := whichBefore(item, before); err != nil {
			return 0, err
		} else if !all {
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
