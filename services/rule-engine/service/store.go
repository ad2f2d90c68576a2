package ruleengine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/retention"
	"github.com/nightjar-edr/nightjar/pkg/view"
)

// Keys of the store. Those of raised alerts are prefixRaised, the endpoint, the
// generation unless it is 0, and the 16 bytes of the event's hash, with the
// alert's sequence as their value. Those of attempts are prefixAttempts and a
// sequence of the stream EVENTS.
var (
	keyRules       = []byte("rules/set")
	prefixRaised   = "raised/"
	prefixAttempts = "attempts/"
)

// attemptsLife is how long the attempts on a batch are remembered.
const attemptsLife = 24 * time.Hour

func raisedKey(endpoint string, generation uint64, hash event.Hash) string {
	key := []byte(prefixRaised + endpoint + "/")
	if generation > 0 {
		key = binary.BigEndian.AppendUint64(key, generation)
	}
	return string(append(key, hash[:]...))
}

// loadRules puts the stored rule set into force.
func (s *Service) loadRules() error {
	return s.db.View(func(txn *badger.Txn) error {
		item, err := txn.Get(keyRules)
		if errors.Is(err, badger.ErrKeyNotFound) {
			return nil
		} else if err != nil {
			return err
		}
		return item.Value(func(value []byte) error {
			if len(value) < 8 {
				return fmt.Errorf("stored rule set has %d bytes", len(value))
			}
			s.putInForce(binary.BigEndian.Uint64(value), value[8:])
			return nil
		})
	})
}

// putInForce decodes and compiles a record. A record that does not work leaves
// the one before in force and the service not ready.
func (s *Service) putInForce(revision uint64, value []byte) {
	rec, err := decodeRecord(value)
	if err != nil {
		s.rules.refuse(revision, err)
		return
	}
	_ = s.rules.apply(revision, rec) // logged, and told by Ready
}

// rulesView folds the bucket rules.
func (s *Service) rulesView(metrics *view.Metrics) (*view.View, error) {
	name, filter := stream.KVStream(stream.Rules)
	key := "$KV." + stream.Rules + "." + message.RulesKey
	return view.New(view.Config{
		Name: "rules", Stream: name, Filters: []string{filter}, Compacted: true,
		DB: s.db, JS: s.cfg.Bus.JS, Room: s.cfg.Room, Log: s.cfg.Log, Metrics: metrics,
		Fold: func(txn *badger.Txn, msgs []view.Msg) (func(), error) {
			var last *view.Msg
			for i := range msgs {
				if msgs[i].Subject == key {
					last = &msgs[i]
				}
			}
			if last == nil {
				return nil, nil
			}
			value := last.Data
			if last.Deleted() {
				value = nil
			}
			stored := binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(value)), last.Seq)
			if err := txn.Set(keyRules, append(stored, value...)); err != nil {
				return nil, err
			}
			return func() { s.putInForce(last.Seq, value) }, nil
		},
	})
}

// raisedView folds the stream ALERTS into the set of raised alerts.
func (s *Service) raisedView(metrics *view.Metrics) (*view.View, error) {
	return view.New(view.Config{
		Name: "raised", Stream: stream.Alerts, DB: s.db, JS: s.cfg.Bus.JS, Room: s.cfg.Room, Log: s.cfg.Log, Metrics: metrics, Trace: s.cfg.Bus.Trace, Pace: raisedPace,
		Removed: func(ctx context.Context) (uint64, error) { return s.removals.Reach(stream.Alerts)(ctx) },
		Fold: func(txn *badger.Txn, msgs []view.Msg) (func(), error) {
			keys := make([]string, 0, len(msgs))
			for i := range msgs {
				m := &msgs[i]
				hash, err := event.ParseHash(m.Header.Get(message.HeaderHash))
				if err != nil {
					s.cfg.Log.Error("alert without a hash is passed over", "sequence", m.Seq, "error", err)
					continue
				}
				endpoint, generation := subject.Endpoint(m.Subject), message.GenerationOf(m.Header)
				key := raisedKey(endpoint, generation, hash)
				keys = append(keys, key)
				if generation < s.removals.Generation(endpoint) || m.Seq < s.raisedBelow {
					continue
				}
				if err := txn.Set([]byte(key), retention.PutSeq(m.Seq)); err != nil {
					return nil, err
				}
			}
			last := msgs[len(msgs)-1].Seq
			return func() { s.published.folded(last, keys) }, nil
		},
	})
}

// isRaised tells whether an alert was raised before, by any replica.
func (s *Service) isRaised(key string) (bool, error) {
	if s.published.has(key) {
		return true, nil
	}
	err := s.db.View(func(txn *badger.Txn) error {
		_, err := txn.Get([]byte(key))
		return err
	})
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, badger.ErrKeyNotFound):
		return false, nil
	}
	return false, fmt.Errorf("read raised alerts: %w", err)
}

func attemptsKey(seq uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte(prefixAttempts), seq)
}

// attempts returns how often work on a batch began and did not end in order.
func (s *Service) attempts(seq uint64) (n int, err error) {
	err = s.db.View(func(txn *badger.Txn) error {
		item, err := txn.Get(attemptsKey(seq))
		if errors.Is(err, badger.ErrKeyNotFound) {
			return nil
		} else if err != nil {
			return err
		}
		return item.Value(func(value []byte) error {
			if len(value) == 1 {
				n = int(value[0])
			}
			return nil
		})
	})
	if err != nil {
		return 0, fmt.Errorf("read attempts: %w", err)
	}
	return n, nil
}

// setAttempts stores what attempts returns; 0 forgets the batch.
func (s *Service) setAttempts(seq uint64, n int) error {
	err := s.db.Update(func(txn *badger.Txn) error {
		if n == 0 {
			return txn.Delete(attemptsKey(seq))
		}
		return txn.SetEntry(badger.NewEntry(attemptsKey(seq), []byte{byte(n)}).WithTTL(attemptsLife))
	})
	if err != nil {
		return fmt.Errorf("write attempts: %w", err)
	}
	return nil
}

// conflict tells whether a compare-and-set lost against another one.
func conflict(err error) bool {
	var api *jetstream.APIError
	return errors.Is(err, jetstream.ErrKeyExists) ||
		errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence
}
