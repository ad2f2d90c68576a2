package dispatch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/view"
)

// Keys of the store. An order and a deadline are 8 bytes, big-endian, so that
// keys sort by them.
//
//	c/<endpoint>/<order>              revision (8 bytes) and the record as it stands in the bucket
//	u/<endpoint>/<command>            order
//	q/<endpoint>/<order>              the command is queued
//	s/<deadline><endpoint>/<order>    the command is sent; deadline in Unix seconds
//	o/<object>                        a command refers to the object
const (
	recordPrefix = "c/"
	uuidPrefix   = "u/"
	queuePrefix  = "q/"
	sentPrefix   = "s/"
	objectPrefix = "o/"
)

// Times from handing a command out until it ends without a result.
const (
	answerGrace   = time.Minute
	answerDefault = 10 * time.Minute
)

// entry is a command with the revision of its key.
type entry struct {
	revision uint64
	record   message.CommandRecord
}

func be(n uint64) string { return string(binary.BigEndian.AppendUint64(nil, n)) }

func recordKey(endpoint string, order uint64) []byte {
	return []byte(recordPrefix + endpoint + "/" + be(order))
}

func uuidKey(endpoint, command string) []byte {
	return []byte(uuidPrefix + endpoint + "/" + command)
}

// answerTime returns how long a command that was handed out may go without a
// result.
func answerTime(r *message.CommandRecord) time.Duration {
	if r.Timeout > 0 {
		return r.Timeout + answerGrace
	}
	return answerDefault
}

// deadline returns when a sent command expires.
func deadline(r *message.CommandRecord) time.Time { return r.Sent.Add(answerTime(r)) }

// indexKeys returns the keys that point to a command beside its record's own.
func indexKeys(r *message.CommandRecord) [][]byte {
	var keys [][]byte
	switch r.State {
	case message.CommandQueued:
		keys = append(keys, []byte(queuePrefix+r.Endpoint+"/"+be(r.Order)))
	case message.CommandSent:
		keys = append(keys, []byte(sentPrefix+be(uint64(deadline(r).Unix()))+r.Endpoint+"/"+be(r.Order)))
	}
	for _, name := range r.Objects() {
		keys = append(keys, []byte(objectPrefix+name))
	}
	return keys
}

// counts are how many commands are in a state.
type counts struct{ queued, sent int64 }

func (c *counts) add(state message.CommandState, n int64) {
	switch state {
	case message.CommandQueued:
		c.queued += n
	case message.CommandSent:
		c.sent += n
	}
}

// fold brings changes of bucket commands into the store.
func (s *Service) fold(txn *badger.Txn, msgs []view.Msg) (func(), error) {
	var change counts
	for i := range msgs {
		m := &msgs[i]
		key := strings.TrimPrefix(m.Subject, "$KV."+stream.Commands+".")
		endpoint, command, err := message.ParseCommandKey(key)
		if err != nil {
			s.log.Error("key passed over", "sequence", m.Seq, "error", err)
			continue
		}
		var next *message.CommandRecord
		if !m.Deleted() {
			r, err := message.DecodeCommandRecord(m.Data, m.Seq)
			if err != nil || r.Endpoint != endpoint || r.UUID != command {
				s.log.Error("record passed over", "key", key, "sequence", m.Seq, "error", err)
				continue
			}
			next = &r
		}
		if err := apply(txn, endpoint, command, next, m.Data, m.Seq, &change); err != nil {
			return nil, fmt.Errorf("command %s: %w", key, err)
		}
	}
	return func() {
		s.queued.Add(change.queued)
		s.sent.Add(change.sent)
	}, nil
}

// apply replaces what the store knows of a command; a nil next removes it.
func apply(txn *badger.Txn, endpoint, command string, next *message.CommandRecord, data []byte, revision uint64, change *counts) error {
	old, err := loadIn(txn, endpoint, command)
	if err != nil {
		return err
	}
	if old != nil {
		for _, key := range indexKeys(&old.record) {
			if err := txn.Delete(key); err != nil {
				return err
			}
		}
		change.add(old.record.State, -1)
	}
	if next == nil {
		if old == nil {
			return nil
		}
		if err := txn.Delete(recordKey(endpoint, old.record.Order)); err != nil {
			return err
		}
		return txn.Delete(uuidKey(endpoint, command))
	}
	change.add(next.State, 1)
	for _, key := range indexKeys(next) {
		if err := txn.Set(key, nil); err != nil {
			return err
		}
	}
	if err := txn.Set(uuidKey(endpoint, command), []byte(be(next.Order))); err != nil {
		return err
	}
	return txn.Set(recordKey(endpoint, next.Order), append([]byte(be(revision)), data...))
}

// loadIn returns a command, nil when there is none.
func loadIn(txn *badger.Txn, endpoint, command string) (*entry, error) {
	item, err := txn.Get(uuidKey(endpoint, command))
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var order uint64
	if err := item.Value(func(b []byte) error {
		if len(b) != 8 {
			return fmt.Errorf("order of %d bytes", len(b))
		}
		order = binary.BigEndian.Uint64(b)
		return nil
	}); err != nil {
		return nil, err
	}
	if item, err = txn.Get(recordKey(endpoint, order)); err != nil {
		return nil, err
	}
	return decodeItem(item)
}

// decodeItem reads an entry from an item whose key is a recordKey.
func decodeItem(item *badger.Item) (*entry, error) {
	key := item.Key()
	if len(key) < 8 {
		return nil, fmt.Errorf("record key of %d bytes", len(key))
	}
	order := binary.BigEndian.Uint64(key[len(key)-8:])
	var e entry
	err := item.Value(func(b []byte) error {
		if len(b) < 8 {
			return fmt.Errorf("record of %d bytes", len(b))
		}
		e.revision = binary.BigEndian.Uint64(b)
		var err error
		e.record, err = message.DecodeCommandRecord(b[8:], order)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &e, nil
}

// load returns a command of an endpoint, nil when there is none.
func (s *Service) load(endpoint, command string) (e *entry, err error) {
	err = s.db.View(func(txn *badger.Txn) error {
		e, err = loadIn(txn, endpoint, command)
		return err
	})
	return e, err
}

// oldestQueued returns the command that an endpoint is to get next, nil when
// there is none.
func (s *Service) oldestQueued(endpoint string) (e *entry, err error) {
	err = s.db.View(func(txn *badger.Txn) error {
		prefix := []byte(queuePrefix + endpoint + "/")
		it := txn.NewIterator(badger.IteratorOptions{Prefix: prefix})
		defer it.Close()
		it.Rewind()
		if !it.Valid() {
			return nil
		}
		order := binary.BigEndian.Uint64(it.Item().Key()[len(prefix):])
		item, err := txn.Get(recordKey(endpoint, order))
		if err != nil {
			return err
		}
		e, err = decodeItem(item)
		return err
	})
	return e, err
}

// newestFirst calls f with the commands of an endpoint queued before order,
// newest first, until f returns false; order 0 begins with the newest.
func (s *Service) newestFirst(endpoint string, before uint64, f func(*entry) bool) error {
	return s.db.View(func(txn *badger.Txn) error {
		prefix := []byte(recordPrefix + endpoint + "/")
		it := txn.NewIterator(badger.IteratorOptions{Prefix: prefix, Reverse: true, PrefetchValues: true, PrefetchSize: 1})
		defer it.Close()
		from := ^uint64(0)
		if before > 0 {
			from = before - 1
		}
		for it.Seek(recordKey(endpoint, from)); it.Valid(); it.Next() {
			e, err := decodeItem(it.Item())
			if err != nil {
				return err
			}
			if !f(e) {
				return nil
			}
		}
		return nil
	})
}

// surplus returns the oldest ended commands of an endpoint, as many as there
// are commands beyond keep that wait no more.
func (s *Service) surplus(endpoint string, keep int) (all []*entry, err error) {
	err = s.db.View(func(txn *badger.Txn) error {
		prefix := []byte(recordPrefix + endpoint + "/")
		n := countIn(txn, prefix) - countIn(txn, []byte(queuePrefix+endpoint+"/")) - keep
		if n <= 0 {
			return nil
		}
		it := txn.NewIterator(badger.IteratorOptions{Prefix: prefix})
		defer it.Close()
		for it.Rewind(); it.Valid() && len(all) < n; it.Next() {
			e, err := decodeItem(it.Item())
			if err != nil {
				return err
			}
			if e.record.State.Ended() {
				all = append(all, e)
			}
		}
		return nil
	})
	return all, err
}

func countIn(txn *badger.Txn, prefix []byte) int {
	it := txn.NewIterator(badger.IteratorOptions{Prefix: prefix})
	defer it.Close()
	n := 0
	for it.Rewind(); it.Valid(); it.Next() {
		n++
	}
	return n
}

// due returns the sent commands whose deadline is over.
func (s *Service) due(now time.Time) (all []*entry, err error) {
	err = s.db.View(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte(sentPrefix)})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			rest := it.Item().Key()[len(sentPrefix):]
			if binary.BigEndian.Uint64(rest) > uint64(now.Unix()) {
				return nil
			}
			item, err := txn.Get(append([]byte(recordPrefix), rest[8:]...))
			if err != nil {
				return err
			}
			e, err := decodeItem(item)
			if err != nil {
				return err
			}
			if deadline(&e.record).Before(now) {
				all = append(all, e)
			}
		}
		return nil
	})
	return all, err
}

// referred tells whether a command refers to an object.
func (s *Service) referred(object string) (yes bool, err error) {
	err = s.db.View(func(txn *badger.Txn) error {
		_, err := txn.Get([]byte(objectPrefix + object))
		if errors.Is(err, badger.ErrKeyNotFound) {
			return nil
		}
		yes = err == nil
		return err
	})
	return yes, err
}

// waiting counts the commands that wait for an endpoint.
func (s *Service) waiting(endpoint string) (n int, err error) {
	err = s.db.View(func(txn *badger.Txn) error {
		n = countIn(txn, []byte(queuePrefix+endpoint+"/"))
		return nil
	})
	return n, err
}

// count counts the commands that wait and that are out.
func (s *Service) count() (c counts, err error) {
	err = s.db.View(func(txn *badger.Txn) error {
		c.queued = int64(countIn(txn, []byte(queuePrefix)))
		c.sent = int64(countIn(txn, []byte(sentPrefix)))
		return nil
	})
	return c, err
}

// dropped returns the names in had that are not in has.
func dropped(had, has []string) []string {
	keep := make(map[string]bool, len(has))
	for _, name := range has {
		keep[name] = true
	}
	var gone []string
	for _, name := range had {
		if !keep[name] {
			gone = append(gone, name)
		}
	}
	return gone
}
