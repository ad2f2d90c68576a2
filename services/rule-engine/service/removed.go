package ruleengine

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/dgraph-io/badger/v4"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/removal"
	"github.com/nightjar-edr/nightjar/pkg/store"
	"github.com/nightjar-edr/nightjar/pkg/view"
)

// newRemovals returns the removals: of removed events no alert is raised, those
// that were raised are forgotten, and the stream ALERTS is cleared of them.
func (s *Service) newRemovals(metrics *view.Metrics) (*removal.Removals, error) {
	js := s.cfg.Bus.JS
	return removal.New(removal.Config{
		View: view.Config{DB: s.db, JS: js, Room: s.cfg.Room, Log: s.cfg.Log, Metrics: metrics},
		Obey: func(r removal.Removal) error {
			return s.raisedFold.Exclusive(func() error { return s.forgetRaised(r) })
		},
		Clear: map[string]func(context.Context, removal.Removal) error{
			stream.Alerts: removal.Stream(js, stream.Alerts, subject.AllAlertsOf),
		},
	})
}

// forgetRaised deletes what the store has of alerts of generations before a
// removal. It must be called within Exclusive of the view of raised alerts.
func (s *Service) forgetRaised(r removal.Removal) error {
	var keys [][]byte
	err := s.db.View(func(txn *badger.Txn) error {
		prefix := []byte(prefixRaised + r.Endpoint + "/")
		it := txn.NewIterator(badger.IteratorOptions{Prefix: prefix})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			if generationOf(it.Item().Key()[len(prefix):]) < r.Record.Generation {
				keys = append(keys, it.Item().KeyCopy(nil))
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("look for raised alerts: %w", err)
	}
	if err := store.Delete(s.db, keys); err != nil {
		return fmt.Errorf("forget raised alerts: %w", err)
	}
	return nil
}

// generationOf reads the generation from what follows the endpoint in the key
// of a raised alert.
func generationOf(rest []byte) uint64 {
	if len(rest) < 8+len(event.Hash{}) {
		return 0
	}
	return binary.BigEndian.Uint64(rest)
}

// cleared answers message.AlertsCleared.
func (s *Service) cleared(ctx context.Context, q message.ClearedRequest) (struct{}, error) {
	if err := s.removals.Cleared(ctx, q.Endpoint, q.Revision); err != nil {
		return struct{}{}, fault.New(fault.Unavailable, "%v", err)
	}
	return struct{}{}, nil
}
