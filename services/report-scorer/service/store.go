package scorer

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"

	"github.com/nightjar-edr/nightjar/pkg/store"
	"github.com/nightjar-edr/nightjar/services/report-scorer/internal/report"
)

// The store's keys:
//
//	stats/<uuid>                       statistics of an endpoint
//	count/<uuid><begin><hash of name>  how often a name occurred, and the name
//	names/<uuid><hash of name>         a name that the endpoint's alerts had, and
//	                                   the last generation of them
//	census/<hash of name>              how many endpoints have a name
//	size/census                        how many of those there are
//	cleared/<uuid>                     up to where alerts do not count
//
// Names are told apart by the first 128 bits of their SHA-256: keys stay
// short whatever a name is. A count's key has the sequence that its
// statistics begin behind, so that statistics which begin anew leave the old
// counts behind without having to delete them in the same transaction.
const (
	statsPrefix   = "stats/"
	countPrefix   = "count/"
	namesPrefix   = "names/"
	censusPrefix  = "census/"
	censusSizeKey = "size/census"
	clearedPrefix = "cleared/"
)

const uuidLength = 36

type nameHash [16]byte

func hashOf(name string) nameHash {
	sum := sha256.Sum256([]byte(name))
	return nameHash(sum[:16])
}

// record is what the store holds of an endpoint: exact statistics of its
// alerts of a generation with sequences above Begin, up to and including Last.
type record struct {
	Generation uint64 `json:"generation,omitempty"`
	Begin      uint64 `json:"begin"`
	Last       uint64 `json:"last"`
	// Names is how many names are counted, NameBytes what they take in a
	// report.
	Names     int          `json:"names"`
	NameBytes int          `json:"name-bytes"`
	Stats     report.Stats `json:"stats"`
}

// mark is the value of an endpoint's key in the bucket reports, with the
// revision it was written at.
type mark struct {
	Cleared  uint64 `json:"cleared"`
	Revision uint64 `json:"revision"`
}

func statsKey(uuid string) []byte { return []byte(statsPrefix + uuid) }

// countsPrefix returns the prefix of the counts of statistics that begin
// behind a sequence.
func countsPrefix(uuid string, begin uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte(countPrefix+uuid), begin)
}

func countKey(uuid string, begin uint64, h nameHash) []byte {
	return append(countsPrefix(uuid, begin), h[:]...)
}

func namesKey(uuid string, h nameHash) []byte { return append([]byte(namesPrefix+uuid), h[:]...) }

func censusKey(h nameHash) []byte { return append([]byte(censusPrefix), h[:]...) }

// get reads a value from the store, and tells whether it is there.
func get(txn *badger.Txn, key []byte, read func([]byte) error) (bool, error) {
	item, err := txn.Get(key)
	switch {
	case errors.Is(err, badger.ErrKeyNotFound):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("read %q: %w", key, err)
	}
	if err := item.Value(read); err != nil {
		return false, fmt.Errorf("read %q: %w", key, err)
	}
	return true, nil
}

// readRecord reads an endpoint's statistics, the zero record when there are
// none.
func readRecord(txn *badger.Txn, uuid string) (r record, err error) {
	_, err = get(txn, statsKey(uuid), func(b []byte) error { return json.Unmarshal(b, &r) })
	return r, err
}

// record reads an endpoint's statistics outside of any other transaction.
func (s *Service) record(uuid string) (r record, err error) {
	err = s.db.View(func(txn *badger.Txn) error {
		r, err = readRecord(txn, uuid)
		return err
	})
	return r, err
}

func writeRecord(txn *badger.Txn, uuid string, r record) error {
	value, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode statistics of %s: %w", uuid, err)
	}
	return txn.Set(statsKey(uuid), value)
}

// count is how often a name occurred.
type count struct {
	name string
	n    uint64
}

func (c count) encode() []byte { return append(binary.AppendUvarint(nil, c.n), c.name...) }

func decodeCount(b []byte) (count, error) {
	n, size := binary.Uvarint(b)
	if size <= 0 {
		return count{}, errors.New("malformed count")
	}
	return count{n: n, name: string(b[size:])}, nil
}

// readCount reads a count, the zero count when there is none.
func readCount(txn *badger.Txn, key []byte) (c count, err error) {
	_, err = get(txn, key, func(b []byte) error { c, err = decodeCount(b); return err })
	return c, err
}

// readCounts reads all counts of statistics.
func readCounts(txn *badger.Txn, uuid string, begin uint64) (map[string]int64, error) {
	prefix := countsPrefix(uuid, begin)
	opts := badger.DefaultIteratorOptions
	opts.Prefix = prefix
	it := txn.NewIterator(opts)
	defer it.Close()
	counts := map[string]int64{}
	for it.Rewind(); it.Valid(); it.Next() {
		err := it.Item().Value(func(b []byte) error {
			c, err := decodeCount(b)
			counts[c.name] = int64(c.n)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("read %q: %w", it.Item().Key(), err)
		}
	}
	return counts, nil
}

// readNumber reads a number, and tells whether it is there.
func readNumber(txn *badger.Txn, key []byte) (n uint64, found bool, err error) {
	found, err = get(txn, key, func(b []byte) error {
		if len(b) != 8 {
			return errors.New("malformed number")
		}
		n = binary.BigEndian.Uint64(b)
		return nil
	})
	return n, found, err
}

func writeNumber(txn *badger.Txn, key []byte, n uint64) error {
	return txn.Set(key, binary.BigEndian.AppendUint64(nil, n))
}

// readCensus reads the number of different names over all endpoints.
func readCensus(txn *badger.Txn) (uint64, error) {
	n, _, err := readNumber(txn, []byte(censusSizeKey))
	return n, err
}

// loadMarks fills the marks from the store.
func (s *Service) loadMarks() error {
	return s.db.View(func(txn *badger.Txn) error {
		opts := badger.DefaultIteratorOptions
		opts.Prefix = []byte(clearedPrefix)
		it := txn.NewIterator(opts)
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			var m mark
			if err := it.Item().Value(func(b []byte) error { return json.Unmarshal(b, &m) }); err != nil {
				return fmt.Errorf("read %q: %w", it.Item().Key(), err)
			}
			s.marks[string(it.Item().Key()[len(clearedPrefix):])] = m
		}
		return nil
	})
}

// mark returns what is known of an endpoint's last clear.
func (s *Service) mark(uuid string) mark {
	s.marksMu.RLock()
	defer s.marksMu.RUnlock()
	return s.marks[uuid]
}

// sweep deletes counts that no statistics refer to any more: those that begin
// before the ones in the store do, or before the last clear. Counts that
// begin later are just being made.
func (s *Service) sweep() error {
	var stale [][]byte
	err := s.db.View(func(txn *badger.Txn) error {
		opts := badger.DefaultIteratorOptions
		opts.Prefix, opts.PrefetchValues = []byte(countPrefix), false
		it := txn.NewIterator(opts)
		defer it.Close()
		var uuid string
		var begin uint64
		for it.Rewind(); it.Valid(); it.Next() {
			key := it.Item().Key()[len(countPrefix):]
			if len(key) < uuidLength+8 {
				continue
			}
			if string(key[:uuidLength]) != uuid {
				uuid = string(key[:uuidLength])
				r, err := readRecord(txn, uuid)
				if err != nil {
					return err
				}
				begin = max(r.Begin, s.mark(uuid).Cleared)
			}
			if binary.BigEndian.Uint64(key[uuidLength:]) < begin {
				stale = append(stale, it.Item().KeyCopy(nil))
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	if err := store.Delete(s.db, stale); err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	return nil
}
