package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/failpoint"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/removal"
)

const (
	// settleAfter is the age from which nothing is on its way any more that
	// was sent before a removal: requests of gateways and alerts in hand have
	// their time limits below it.
	settleAfter = 2 * time.Minute
	// settleEvery is how often removals of that age are looked for.
	settleEvery = 15 * time.Second
)

// removedFrom are the streams that a removal names the ends of.
func removedFrom() []string {
	artifacts, _ := stream.ObjectStream(stream.Artifacts)
	return []string{stream.Events, stream.Alerts, stream.DeadLetters, artifacts}
}

// remove records that everything an endpoint has stored is removed. The
// endpoint may have been deleted.
func (s *Service) remove(ctx context.Context, q message.RemoveRequest) (message.RemoveReply, error) {
	if !subject.IsUUID(q.UUID) {
		return message.RemoveReply{}, fault.New(fault.Invalid, "uuid %q is not of the form 8-4-4-4-12", q.UUID)
	}
	var reply message.RemoveReply
	for {
		if err := s.removals.View().Sync(ctx); err != nil {
			return reply, unavailable(err)
		}
		before, _ := s.removals.Get(q.UUID)
		ends, err := s.ends(ctx)
		if err != nil {
			return reply, unavailable(err)
		}
		now := time.Now().UTC()
		r := message.RemovalRecord{
			Generation: max(before.Record.Generation+1, uint64(max(now.UnixMilli(), 0))), Time: now, Operator: q.Operator, Ends: ends,
		}
		failpoint.Hit(failpoint.RemovalBeforeWrite)
		reply.Revision, err = s.writeRemoval(ctx, q.UUID, r, before.Revision)
		switch {
		case err == nil:
			reply.Generation = r.Generation
			return reply, nil
		case !overtaken(err):
			return message.RemoveReply{}, unavailable(err)
		}
		s.metrics.conflicts.Inc()
	}
}

// ends returns the last sequence of each stream that is there.
func (s *Service) ends(ctx context.Context) (map[string]uint64, error) {
	ends := map[string]uint64{}
	for _, name := range removedFrom() {
		str, err := s.cfg.Bus.JS.Stream(ctx, name)
		switch {
		case err == nil:
			ends[name] = str.CachedInfo().State.LastSeq
		case !errors.Is(err, jetstream.ErrStreamNotFound):
			return nil, fmt.Errorf("end of stream %s: %w", name, err)
		}
	}
	return ends, nil
}

// writeRemoval writes a removal over the one of a revision, 0 for none, and
// waits until the view holds it.
func (s *Service) writeRemoval(ctx context.Context, uuid string, r message.RemovalRecord, revision uint64) (uint64, error) {
	data, err := json.Marshal(r)
	if err != nil {
		return 0, fmt.Errorf("encode removal of %s: %w", uuid, err)
	}
	written, err := s.removed.Update(ctx, uuid, data, revision)
	if err != nil {
		return 0, fmt.Errorf("write removal of %s: %w", uuid, err)
	}
	failpoint.Hit(failpoint.RemovalAfterWrite)
	return written, s.removals.Obeyed(ctx, written)
}

// settleRemovals notes where the streams end some time after each removal, from
// time to time until ctx ends.
func (s *Service) settleRemovals(ctx context.Context) {
	lifecycle.Repeat(ctx, settleEvery, func() {
		for _, r := range s.removals.All() {
			if err := s.settle(ctx, r, time.Now()); err != nil && ctx.Err() == nil {
				s.cfg.Log.Warn("a removal is not settled yet, will be tried again", "endpoint", r.Endpoint, "error", err)
			}
		}
	})
}

// settle notes where the streams end now, unless a removal is too young or has
// settled. Of several replicas one does it.
func (s *Service) settle(ctx context.Context, r removal.Removal, now time.Time) error {
	if r.Record.Settled != nil || now.Sub(r.Record.Time) < settleAfter {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var err error
	if r.Record.Settled, err = s.ends(ctx); err != nil {
		return err
	}
	if _, err = s.writeRemoval(ctx, r.Endpoint, r.Record, r.Revision); overtaken(err) {
		return nil
	}
	return err
}
