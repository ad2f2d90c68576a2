package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

// takeOver adds the endpoints of Config.Import that the bucket has never
// known, in their order. One that was deleted stays so: its key still holds
// the mark of the deletion. One that exists with another key is an error that
// wraps lifecycle.ErrUsage, before anything is written.
func (s *Service) takeOver(ctx context.Context) error {
	if len(s.cfg.Import) == 0 {
		return nil
	}
	added, deleted := 0, 0
	err := s.attempt(ctx, func() error {
		missing, err := s.missing(s.cfg.Import)
		if err != nil {
			return err
		}
		for _, r := range missing {
			r.Created = s.index.nextCreated(time.Now().UTC())
			err := s.introduce(ctx, r)
			switch {
			case err == nil:
				added++
			case !overtaken(err):
				return err
			default:
				// The key has a past: the endpoint was deleted, or another
				// replica has just added it.
				if err := s.view.Sync(ctx); err != nil {
					return err
				}
				switch e, _, ok := s.index.get(r.UUID); {
				case !ok:
					deleted++
				case e.Record.Key != r.Key:
					return otherKey(r.UUID)
				}
			}
		}
		return nil
	})
	if fault.Is(err, fault.Conflict) {
		return fmt.Errorf("%w: import: %w", lifecycle.ErrUsage, err)
	}
	if err != nil {
		return fmt.Errorf("import: %w", err)
	}
	s.cfg.Log.Info("endpoints imported", "added", added, "deleted", deleted, "listed", len(s.cfg.Import))
	return nil
}

// introduce writes the record of an endpoint whose key has never been written,
// not even to be deleted, and waits until the view holds it.
func (s *Service) introduce(ctx context.Context, r message.EndpointRecord) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode record %s: %w", r.UUID, err)
	}
	// Create would also write over the mark of a deletion.
	revision, err := s.kv.Update(ctx, r.UUID, data, 0)
	if err != nil {
		return fmt.Errorf("write record %s: %w", r.UUID, err)
	}
	return s.view.Wait(ctx, revision)
}
