package scorer

import (
	"bytes"
	"fmt"

	"github.com/dgraph-io/badger/v4"

	"github.com/nightjar-edr/nightjar/pkg/removal"
)

// forgetAtOnce is how many keys one transaction deletes.
const forgetAtOnce = 500

// forget deletes what the store has of an endpoint's alerts before a removal:
// its statistics, and its names from the census, where they stay if another
// endpoint has them. It must be called within Exclusive of the view of alerts,
// and may be called again after it has ended early.
func (s *Service) forget(r removal.Removal) error {
	// One that is just being made anew is ended or not begun.
	s.rebuilding.Lock()
	defer s.rebuilding.Unlock()
	uuid, generation := r.Endpoint, r.Record.Generation
	rec, err := s.record(uuid)
	if err != nil {
		return err
	}
	keep := countsPrefix(uuid, rec.Begin)
	if rec.Generation < generation {
		keep = nil
		if err := s.db.Update(func(txn *badger.Txn) error { return txn.Delete(statsKey(uuid)) }); err != nil {
			return fmt.Errorf("forget statistics of %s: %w", uuid, err)
		}
	}
	err = s.forgetEach(countPrefix+uuid, func(txn *badger.Txn, key []byte) (bool, error) {
		return keep == nil || !bytes.HasPrefix(key, keep), nil
	})
	if err != nil {
		return fmt.Errorf("forget counts of %s: %w", uuid, err)
	}
	err = s.forgetEach(namesPrefix+uuid, func(txn *badger.Txn, key []byte) (bool, error) {
		last, _, err := readNumber(txn, key)
		if err != nil || last >= generation {
			return false, err
		}
		return true, leaveCensus(txn, nameHash(key[len(namesPrefix)+uuidLength:]))
	})
	if err != nil {
		return fmt.Errorf("forget names of %s: %w", uuid, err)
	}
	return s.db.View(func(txn *badger.Txn) error {
		n, err := readCensus(txn)
		s.metrics.census.Set(float64(n))
		return err
	})
}

// leaveCensus notes that one endpoint less has a name.
func leaveCensus(txn *badger.Txn, h nameHash) error {
	n, _, err := readNumber(txn, censusKey(h))
	if err != nil {
		return err
	}
	switch n {
	case 0:
		return nil
	case 1:
	default:
		return writeNumber(txn, censusKey(h), n-1)
	}
	if err := txn.Delete(censusKey(h)); err != nil {
		return err
	}
	size, err := readCensus(txn)
	if err != nil {
		return err
	}
	return writeNumber(txn, []byte(censusSizeKey), size-1)
}

// forgetEach deletes the keys with a prefix for which also returns true, after
// what that has changed in the same transaction.
func (s *Service) forgetEach(prefix string, also func(txn *badger.Txn, key []byte) (bool, error)) error {
	from := []byte(prefix)
	for from != nil {
		err := s.db.Update(func(txn *badger.Txn) error {
			keys, next := someKeys(txn, prefix, from)
			from = next
			for _, key := range keys {
				drop, err := also(txn, key)
				if err != nil {
					return err
				}
				if drop {
					if err := txn.Delete(key); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// someKeys returns keys with a prefix from one on, and the key to go on from,
// nil at the end.
func someKeys(txn *badger.Txn, prefix string, from []byte) (keys [][]byte, next []byte) {
	it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte(prefix)})
	defer it.Close()
	for it.Seek(from); it.Valid(); it.Next() {
		if len(keys) == forgetAtOnce {
			return keys, it.Item().KeyCopy(nil)
		}
		keys = append(keys, it.Item().KeyCopy(nil))
	}
	return keys, nil
}
