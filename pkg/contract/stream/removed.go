package stream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// metaRemoved is the member of a stream's metadata that tells the first
// sequence that retention has left, in decimal.
const metaRemoved = "nightjar-removed-below"

// RemovedBelow returns the sequence of a stream below which its owner removes
// all messages, because their retention has ended; 0 where it never did. What
// is missing below it is no loss, and what is derived from it may be dropped.
func RemovedBelow(cfg jetstream.StreamConfig) uint64 {
	seq, err := strconv.ParseUint(cfg.Metadata[metaRemoved], 10, 64)
	if err != nil {
		return 0
	}
	return seq
}

// AwaitRemovedBelow is RemovedBelow for who sees a stream begin with a sequence:
// where the mark is lower it waits for a moment, as an owner may be putting it
// right.
func AwaitRemovedBelow(ctx context.Context, js jetstream.JetStream, name string, first uint64) (below uint64, err error) {
	const looks = 10
	for range looks {
		s, err := js.Stream(ctx, name)
		if err != nil {
			return 0, fmt.Errorf("stream %s: %w", name, err)
		}
		if below = RemovedBelow(s.CachedInfo().Config); below >= first {
			break
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(overlap / looks):
		}
	}
	return below, nil
}

// Remove removes all messages of a stream below a sequence. RemovedBelow says
// so before the first one goes, so that a removal that breaks off is finished
// by another one. Only the stream's owner calls it. It is idempotent, and one
// below an earlier one changes nothing.
//
// Several replicas of the owner may call it, or Ensure, at once. JetStream takes
// the whole configuration of a stream from whoever comes last, so each of them
// looks afterwards whether its own change holds, and who has put back the mark
// of another one sees that the stream begins behind it. The mark is too low then
// for as long as a request takes, which views wait for.
func Remove(ctx context.Context, js jetstream.JetStream, name string, below uint64) error {
	s, err := mark(ctx, js, name, below)
	if err != nil {
		return err
	}
	if s.CachedInfo().State.FirstSeq >= below {
		return nil
	}
	if err := s.Purge(ctx, jetstream.WithPurgeSequence(below)); err != nil {
		return fmt.Errorf("stream %s: remove what is below %d: %w", name, below, err)
	}
	_, err = mark(ctx, js, name, below)
	return err
}

// mark brings the mark of a stream to a sequence, unless it is there or beyond,
// and returns the stream as it was found with that.
func mark(ctx context.Context, js jetstream.JetStream, name string, below uint64) (jetstream.Stream, error) {
	for {
		s, err := js.Stream(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("stream %s: %w", name, err)
		}
		info := s.CachedInfo()
		cfg := info.Config
		if RemovedBelow(cfg) >= below {
			return s, nil
		}
		cfg.Metadata = maps.Clone(cfg.Metadata)
		if cfg.Metadata == nil {
			cfg.Metadata = map[string]string{}
		}
		cfg.Metadata[metaRemoved] = strconv.FormatUint(below, 10)
		marked, err := js.UpdateStream(ctx, cfg)
		if err != nil {
			return nil, fmt.Errorf("stream %s: mark what is removed: %w", name, err)
		}
		below = max(below, leftMeanwhile(info, marked.CachedInfo()))
	}
}

// leftMeanwhile returns the first sequence of a stream where its head has left
// between two looks at it, otherwise 0. Whoever has changed the stream between
// them has put back the mark of the one who removed it.
func leftMeanwhile(before, after *jetstream.StreamInfo) uint64 {
	if first := after.State.FirstSeq; first > before.State.FirstSeq {
		return first
	}
	return 0
}

// keptMark returns the metadata that the new configuration of a stream takes
// over from the old one.
func keptMark(old jetstream.StreamConfig) map[string]string {
	if mark, ok := old.Metadata[metaRemoved]; ok {
		return map[string]string{metaRemoved: mark}
	}
	return nil
}

// Drop deletes a message of a stream. That somebody else has deleted it is no
// error.
func Drop(ctx context.Context, s jetstream.Stream, seq uint64) error {
	err := s.DeleteMsg(ctx, seq)
	if err == nil {
		return nil
	}
	if _, gone := s.GetMsg(ctx, seq); errors.Is(gone, jetstream.ErrMsgNotFound) {
		return nil
	}
	return err
}
