package view

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
)

// Sync returns when everything for this view that the stream held at the time
// of the call is folded, whoever wrote it. What is read from the view afterwards reflects
// every change that had been acknowledged before the call, also one that
// another replica made. It costs a request or two to JetStream. A view that
// stands still fails at once.
func (v *View) Sync(ctx context.Context) error {
	for last := uint64(0); ; {
		if err := v.Err(); err != nil {
			return err
		}
		s, err := v.cfg.JS.Stream(ctx, v.cfg.Stream)
		if err != nil {
			return fmt.Errorf("view %s: end of stream %s: %w", v.cfg.Name, v.cfg.Stream, err)
		}
		end := s.CachedInfo().State.LastSeq
		if v.Position() >= end {
			return nil
		}
		if f := v.cfg.Filters; len(f) > 0 && !slices.Equal(f, s.CachedInfo().Config.Subjects) {
			// The last messages may be none of this view's.
			if end, err = v.last(ctx); err != nil {
				return fmt.Errorf("view %s: end of stream %s: %w", v.cfg.Name, v.cfg.Stream, err)
			}
		}
		if v.Position() >= end {
			return nil
		}
		// The last message may be gone, so that the view never reaches its
		// sequence: a mark of deletion that has expired, or one superseded
		// since. When nothing came after it, being caught up is all there is.
		if _, err := s.GetMsg(ctx, end); errors.Is(err, jetstream.ErrMsgNotFound) {
			if end == last {
				return v.WaitReady(ctx)
			}
			last = end
			continue
		} else if err != nil {
			return fmt.Errorf("view %s: end of stream %s: %w", v.cfg.Name, v.cfg.Stream, err)
		}
		return v.Wait(ctx, end)
	}
}

// Exclusive calls f while nothing is being folded: what was folded before is
// committed, and what comes waits. f must not wait for the view.
func (v *View) Exclusive(f func() error) error {
	v.committing.Lock()
	defer v.committing.Unlock()
	return f()
}

// end returns a sequence that the view has reached when everything is folded that
// its stream held for it when it was looked at. Should the message be removed
// before it is folded, check has the view begin anew.
func (v *View) end(ctx context.Context, info *jetstream.StreamInfo) (uint64, error) {
	if v.pos.Seq >= info.State.LastSeq {
		return info.State.LastSeq, nil
	}
	end, err := v.last(ctx)
	if err != nil {
		return 0, fmt.Errorf("end of stream: %w", err)
	}
	return end, nil
}

// left returns how many messages are to come at most: pending, as a consumer has
// said, unless there must be some up to end of which it does not know. In a
// cluster it may stand at a server whose copy of the stream is behind, and says
// and hands out what that one has.
func (v *View) left(pending, end uint64) uint64 {
	if pending == 0 && v.pos.Seq < end {
		return end - v.pos.Seq
	}
	return pending
}

// last returns the sequence of the last message that is for this view, 0
// where there is none.
func (v *View) last(ctx context.Context) (end uint64, err error) {
	filters := v.cfg.Filters
	if len(filters) == 0 {
		filters = []string{">"}
	}
	for _, filter := range filters {
		seq, err := stream.LastSequence(ctx, v.cfg.JS, v.cfg.Stream, filter)
		if err != nil {
			return 0, err
		}
		end = max(end, seq)
	}
	return end, nil
}
