package view

import (
	"context"
	"fmt"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/beat"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
)

// identify holds the stream against what the position says of it.
func (v *View) identify(ctx context.Context, info *jetstream.StreamInfo) error {
	if v.pos.Stream == "" {
		v.pos = position{Stream: v.cfg.Stream, Created: info.Created}
		return nil
	}
	switch st := info.State; {
	case !v.pos.Created.Equal(info.Created):
		return fmt.Errorf("%w: stream %s was created at %s, the view was built from the one of %s",
			ErrGap, v.cfg.Stream, info.Created.Format(time.RFC3339), v.pos.Created.Format(time.RFC3339))
	case st.LastSeq < v.pos.Seq:
		return fmt.Errorf("%w: stream %s ends at sequence %d, the view had reached %d", ErrGap, v.cfg.Stream, st.LastSeq, v.pos.Seq)
	case !v.cfg.Compacted && st.FirstSeq > v.pos.Seq+1:
		return v.begins(ctx, info, v.pos.Seq, st.FirstSeq)
	}
	return nil
}

// begins tells whether a stream that begins with sequence first, behind what
// comes next for the view, has a gap: unless all that is missing was removed,
// below the mark of retention because its time had ended, and from there on by a
// removal. What ended before the view came to it is counted and logged.
func (v *View) begins(ctx context.Context, info *jetstream.StreamInfo, last, first uint64) error {
	below, explained, err := v.explained(ctx, info, first)
	if err != nil {
		return err
	}
	if !explained {
		return fmt.Errorf("%w: stream %s begins at sequence %d, the view had reached only %d", ErrGap, v.cfg.Stream, first, last)
	}
	after, before := max(last+1, v.passed)-1, min(first, below)
	if before <= after+1 {
		return nil
	}
	v.passed = before
	v.notSeen(int(before-after-1), after, before)
	return nil
}

// explained returns the mark of retention, and tells whether it or a removal says
// that a stream may begin with sequence first. Owners that meet may have put the
// mark too low for a moment.
func (v *View) explained(ctx context.Context, info *jetstream.StreamInfo, first uint64) (below uint64, ok bool, err error) {
	if below = stream.RemovedBelow(info.Config); first <= below {
		return below, true, nil
	}
	if ok, err = v.removed(ctx, first-1); ok || err != nil {
		return below, ok, err
	}
	below, err = stream.AwaitRemovedBelow(ctx, v.cfg.JS, v.cfg.Stream, first)
	return below, first <= below, err
}

// untilCheck returns how long to wait until the next check.
func (v *View) untilCheck() time.Duration {
	if v.ready.Load() {
		return beat.Next(v.cfg.CheckEvery)
	}
	return min(v.cfg.CheckEvery, checkBehind)
}

// check makes sure that the stream that is followed is still the same. It
// tells whether a view to which nothing has come should begin anew: because its
// stream has grown by messages that are not for it, or because it is behind by
// messages that do not come. They may have been removed since they were counted,
// or its consumer stands at a server to which they do not come.
func (v *View) check(ctx context.Context, s jetstream.Stream, idle bool) (again bool, err error) {
	info, err := s.Info(ctx)
	if err != nil {
		return false, nil // a stream that is gone is noticed by its consumer
	}
	if !v.pos.Created.Equal(info.Created) {
		return false, v.identify(ctx, info)
	}
	return idle && (!v.ready.Load() || !v.cfg.Compacted && info.State.LastSeq > v.pos.Seq), nil
}

// removed tells whether what is missing from the stream up to and including a
// sequence may be what a removal has taken.
func (v *View) removed(ctx context.Context, seq uint64) (bool, error) {
	if v.cfg.Removed == nil {
		return false, nil
	}
	reach, err := v.cfg.Removed(ctx)
	if err != nil {
		return false, fmt.Errorf("what was removed from stream %s: %w", v.cfg.Stream, err)
	}
	return seq <= reach, nil
}

// skips tells whether messages of the stream are not for this view, so that
// its position says nothing of them.
func (v *View) skips() bool { return len(v.cfg.Filters) > 0 && !v.cfg.Compacted }

// advance brings the position forward to seq where nothing up to there is left
// to be folded. Otherwise the position of a view that gets few of a stream's
// messages would fall behind the stream's first one, as the others are removed,
// and look like a gap.
func (v *View) advance(seq uint64) error {
	if !v.skips() || seq <= v.pos.Seq {
		return nil
	}
	next := v.pos
	next.Seq = seq
	err := v.cfg.DB.Update(func(txn *badger.Txn) error { return v.write(txn, next) })
	if err != nil {
		return fmt.Errorf("write position: %w", err)
	}
	v.pos = next
	v.tell()
	return nil
}

// contiguous demands that no message is missing between the position and the
// end of a group, where the view wants them all. Messages that left the stream
// at its head before the view had them are a gap. Ones that somebody deleted
// from within are no reason to stand still, for a view that is built anew
// would miss them as well; they are counted and logged. What a removal has
// taken is neither.
func (v *View) contiguous(ctx context.Context, s jetstream.Stream, group []Msg) error {
	if v.cfg.Compacted || len(v.cfg.Filters) > 0 {
		return nil
	}
	last := v.pos.Seq
	for i := range group {
		m := &group[i]
		if last > 0 && m.Seq > last+1 {
			if err := v.missing(ctx, s, last, m.Seq); err != nil {
				return err
			}
		}
		last = max(last, m.Seq)
	}
	return nil
}

// missing reports that nothing came between two sequences.
func (v *View) missing(ctx context.Context, s jetstream.Stream, last, next uint64) error {
	info, err := s.Info(ctx)
	if err != nil {
		return err
	}
	if first := min(info.State.FirstSeq, next); first > last+1 {
		if err := v.begins(ctx, info, last, first); err != nil {
			return err
		}
		last = first - 1
	}
	if last+1 == next {
		return nil
	}
	if removed, err := v.removed(ctx, next-1); removed || err != nil {
		return err
	}
	v.cfg.Log.Error("messages were deleted from within the stream", "view", v.cfg.Name, "stream", v.cfg.Stream, "after", last, "before", next)
	if m := v.cfg.Metrics; m != nil {
		m.missing.WithLabelValues(v.cfg.Name).Add(float64(next - last - 1))
	}
	return nil
}
