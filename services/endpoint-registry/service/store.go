package registry

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/dgraph-io/badger/v4"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/view"
)

// Prefixes of the store's keys: an endpoint by uuid, contacts by partition.
const (
	endpointPrefix = "endpoint/"
	contactsPrefix = "contacts/"
)

var keyPrefix = "$KV." + stream.Endpoints + "."

// fold takes changes of the bucket into the store and, once committed, into
// the index.
func (s *Service) fold(txn *badger.Txn, msgs []view.Msg) (func(), error) {
	changes := make([]func(*index), 0, len(msgs))
	malformed := 0
	for i := range msgs {
		m := &msgs[i]
		change, err := s.foldOne(txn, m)
		if err != nil {
			return nil, err
		}
		if change == nil {
			malformed++
			continue
		}
		changes = append(changes, change)
	}
	return func() {
		s.metrics.malformed.Add(float64(malformed))
		s.index.mu.Lock()
		defer s.index.mu.Unlock()
		for _, change := range changes {
			change(s.index)
		}
	}, nil
}

// foldOne returns the change of the index that follows from a message, nil
// for one that cannot be read.
func (s *Service) foldOne(txn *badger.Txn, m *view.Msg) (func(*index), error) {
	key := strings.TrimPrefix(m.Subject, keyPrefix)
	if number, ok := strings.CutPrefix(key, message.SeenKeyPrefix); ok {
		return s.foldContacts(txn, m, number)
	}
	if m.Deleted() {
		return func(x *index) { x.remove(key) }, txn.Delete([]byte(endpointPrefix + key))
	}
	e := endpoint{Revision: m.Seq}
	if err := json.Unmarshal(m.Data, &e.Record); err != nil || e.Record.UUID != key {
		s.cfg.Log.Error("record of an endpoint cannot be read", "key", key, "revision", m.Seq)
		return nil, nil
	}
	value, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode endpoint %s: %w", key, err)
	}
	return func(x *index) { x.put(e) }, txn.Set([]byte(endpointPrefix+key), value)
}

func (s *Service) foldContacts(txn *badger.Txn, m *view.Msg, number string) (func(*index), error) {
	p, err := strconv.Atoi(number)
	if err != nil || p < 0 || p >= subject.Partitions {
		s.cfg.Log.Error("key names no partition", "subject", m.Subject, "revision", m.Seq)
		return nil, nil
	}
	c := contacts{Revision: m.Seq}
	if !m.Deleted() {
		if err := json.Unmarshal(m.Data, &c.Seen); err != nil {
			s.cfg.Log.Error("contacts of a partition cannot be read", "partition", p, "revision", m.Seq)
			return nil, nil
		}
	}
	value, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode contacts of partition %d: %w", p, err)
	}
	return func(x *index) { x.contacts[p] = c }, txn.Set([]byte(contactsPrefix+number), value)
}

// load fills the index from the store.
func (s *Service) load() error {
	return s.db.View(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.DefaultIteratorOptions)
		defer it.Close()
		for it.Seek([]byte(endpointPrefix)); it.ValidForPrefix([]byte(endpointPrefix)); it.Next() {
			var e endpoint
			if err := it.Item().Value(func(b []byte) error { return json.Unmarshal(b, &e) }); err != nil {
				return fmt.Errorf("read %s: %w", it.Item().Key(), err)
			}
			s.index.put(e)
		}
		for it.Seek([]byte(contactsPrefix)); it.ValidForPrefix([]byte(contactsPrefix)); it.Next() {
			var c contacts
			if err := it.Item().Value(func(b []byte) error { return json.Unmarshal(b, &c) }); err != nil {
				return fmt.Errorf("read %s: %w", it.Item().Key(), err)
			}
			p, err := strconv.Atoi(strings.TrimPrefix(string(it.Item().Key()), contactsPrefix))
			if err != nil || p < 0 || p >= subject.Partitions {
				return fmt.Errorf("read %s: no partition", it.Item().Key())
			}
			s.index.contacts[p] = c
		}
		return nil
	})
}
