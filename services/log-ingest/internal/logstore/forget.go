package logstore

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"

	"github.com/nightjar-edr/nightjar/pkg/failpoint"
	"github.com/nightjar-edr/nightjar/pkg/store"
)

// prefixGeneration begins the keys of the generations that Forget has noted.
const prefixGeneration = 'g'

// forgetAtOnce is how many keys one transaction deletes.
const forgetAtOnce = 1000

// Forget deletes all lines of an endpoint, and what tells that they were stored
// before, and notes the generation that the endpoint's lines have from here on.
// Lines may be read meanwhile, but none of this kind be written. It may be
// called again after it has ended early.
func (w *Writer) Forget(endpoint string, generation uint64) error {
	// A body is only looked for when there is an index.
	for _, first := range []byte{prefixIndex, prefixBody, prefixHash, prefixFresh} {
		if err := w.forget(appendPrefix(nil, first, w.kind, endpoint)); err != nil {
			return fmt.Errorf("forget lines: %w", err)
		}
	}
	w.cache.drop(endpoint)
	err := w.db.Update(func(txn *badger.Txn) error {
		return txn.Set(appendPrefix(nil, prefixGeneration, w.kind, endpoint), binary.BigEndian.AppendUint64(nil, generation))
	})
	if err != nil {
		return fmt.Errorf("note generation: %w", err)
	}
	return nil
}

// forget deletes all keys with a prefix.
func (w *Writer) forget(prefix []byte) error {
	for {
		var keys [][]byte
		err := w.db.View(func(txn *badger.Txn) error {
			it := txn.NewIterator(badger.IteratorOptions{Prefix: prefix})
			defer it.Close()
			for it.Rewind(); it.Valid() && len(keys) < forgetAtOnce; it.Next() {
				keys = append(keys, it.Item().KeyCopy(nil))
			}
			return nil
		})
		if err != nil || len(keys) == 0 {
			return err
		}
		if err := store.Delete(w.db, keys); err != nil {
			return err
		}
		failpoint.HitIn(failpoint.RemovalMidForget, w.kind.String())
	}
}

// Generations returns the generations that Forget has noted, by endpoint.
func (w *Writer) Generations() (map[string]uint64, error) {
	noted := map[string]uint64{}
	err := w.db.View(func(txn *badger.Txn) error {
		prefix := []byte{prefixGeneration, byte(w.kind)}
		it := txn.NewIterator(badger.IteratorOptions{PrefetchValues: true, PrefetchSize: 100, Prefix: prefix})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			endpoint := string(it.Item().Key()[len(prefix)+1:])
			err := it.Item().Value(func(b []byte) error {
				if len(b) != 8 {
					return errors.New("malformed number")
				}
				noted[endpoint] = binary.BigEndian.Uint64(b)
				return nil
			})
			if err != nil {
				return fmt.Errorf("generation of %s: %w", endpoint, err)
			}
		}
		return nil
	})
	return noted, err
}

// Count returns how many lines of a kind an endpoint has stored.
func (r *Reader) Count(kind Kind, endpoint string) (n int64, err error) {
	err = r.db.View(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: appendPrefix(nil, prefixIndex, kind, endpoint)})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			s, err := parseIndexKey(it.Item().Key(), endpoint)
			if err != nil {
				return err
			}
			n += int64(s.count)
		}
		return nil
	})
	return n, err
}
