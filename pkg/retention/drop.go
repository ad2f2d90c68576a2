package retention

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"

	"github.com/nightjar-edr/nightjar/pkg/store"
)

// dropPage is how many keys one transaction of Drop looks at.
const dropPage = 1000

// Drop deletes the keys of a store that begin with prefix and stand for a
// message with a sequence below one. seqOf reads the sequence from a key's
// value. Keys may be written meanwhile.
func Drop(ctx context.Context, db *store.DB, prefix string, below uint64, seqOf func(value []byte) (uint64, error)) error {
	for from := []byte(prefix); from != nil; {
		if err := ctx.Err(); err != nil {
			return err
		}
		next := from
		err := db.Update(func(txn *badger.Txn) (err error) {
			next, err = dropKeys(txn, []byte(prefix), from, below, seqOf)
			return err
		})
		if errors.Is(err, badger.ErrConflict) {
			continue // one of them was written, look again
		} else if err != nil {
			return fmt.Errorf("drop keys of %q below %d: %w", prefix, below, err)
		}
		from = next
	}
	return nil
}

// dropKeys is Drop for a page that begins with a key. It returns the key of the
// next page, nil when there is none.
func dropKeys(txn *badger.Txn, prefix, from []byte, below uint64, seqOf func([]byte) (uint64, error)) (next []byte, err error) {
	it := txn.NewIterator(badger.IteratorOptions{PrefetchValues: true, PrefetchSize: 100, Prefix: prefix})
	defer it.Close()
	n := 0
	for it.Seek(from); it.Valid(); it.Next() {
		key := it.Item().KeyCopy(nil)
		if n++; n > dropPage {
			return key, nil
		}
		var seq uint64
		if err := it.Item().Value(func(v []byte) (err error) { seq, err = seqOf(v); return err }); err != nil {
			return nil, fmt.Errorf("key %q: %w", key, err)
		}
		if seq < below {
			if err := txn.Delete(key); err != nil {
				return nil, err
			}
		}
	}
	return nil, nil
}

// PutSeq returns a sequence as a key's value, which SeqOf reads.
func PutSeq(seq uint64) []byte { return binary.BigEndian.AppendUint64(nil, seq) }

// SeqOf reads a sequence that PutSeq wrote.
func SeqOf(value []byte) (uint64, error) {
	if len(value) != 8 {
		return 0, fmt.Errorf("a sequence of %d bytes", len(value))
	}
	return binary.BigEndian.Uint64(value), nil
}
