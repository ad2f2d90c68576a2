package logstore

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"

	"github.com/dgraph-io/badger/v4"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/store"
)

// tagSize is the length of a tag. Two lines with the same time have the same tag
// by chance once in 2^64, and by intent of nobody who does not know the key.
const tagSize = 8

// tagsKey holds the key of the tags of a store, 16 random bytes.
var tagsKey = []byte("\x00tags")

// tagger makes tags of hashes: what the block cipher of the store's own key makes
// of them, cut to tagSize, and zeros behind it. It is safe for concurrent use.
type tagger struct {
	db    *store.DB
	mu    sync.Mutex
	block cipher.Block
}

// load makes the tagger ready. Without a key there is no merged chunk in the
// store, and known is false unless make is set.
func (t *tagger) load(make bool) (known bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.block != nil {
		return true, nil
	}
	key, err := t.key()
	for errors.Is(err, badger.ErrKeyNotFound) && make {
		err = t.db.Update(newTagsKey)
		if err == nil || errors.Is(err, badger.ErrConflict) { // another has made one
			key, err = t.key()
		}
	}
	switch {
	case errors.Is(err, badger.ErrKeyNotFound):
		return false, nil
	case err == nil:
		t.block, err = aes.NewCipher(key)
	}
	if err != nil {
		return false, fmt.Errorf("key of the tags: %w", err)
	}
	return true, nil
}

func (t *tagger) key() (key []byte, err error) {
	err = t.db.View(func(txn *badger.Txn) error {
		item, err := txn.Get(tagsKey)
		if err == nil {
			key, err = item.ValueCopy(nil)
		}
		return err
	})
	return key, err
}

// newTagsKey makes the key of a store that has none.
func newTagsKey(txn *badger.Txn) error {
	if _, err := txn.Get(tagsKey); !errors.Is(err, badger.ErrKeyNotFound) {
		return err
	}
	key := make([]byte, aes.BlockSize)
	_, _ = rand.Read(key) // never fails
	return txn.Set(tagsKey, key)
}

// tag returns the tag of a hash. load must have returned true.
func (t *tagger) tag(hash event.Hash) (tag event.Hash) {
	t.block.Encrypt(tag[:], hash[:])
	clear(tag[tagSize:])
	return tag
}
