package stream

import (
	"context"
	"fmt"
	"maps"
	"strconv"

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

// Remove removes all messages of a stream below a sequence. RemovedBelow says
// so before the first one goes, so that a removal that breaks off is finished
// by another one. Only the stream's owner calls it. It is idempotent, and one
// below an earlier one changes nothing.
func Remove(ctx context.Context, js jetstream.JetStream, name string, below uint64) error {
	s, err := js.Stream(ctx, name)
	if err != nil {
		return fmt.Errorf("stream %s: %w", name, err)
	}
	cfg := s.CachedInfo().Config
	if RemovedBelow(cfg) < below {
		cfg.Metadata = maps.Clone(cfg.Metadata)
		if cfg.Metadata == nil {
			cfg.Metadata = map[string]string{}
		}
		cfg.Metadata[metaRemoved] = strconv.FormatUint(below, 10)
		if s, err = js.UpdateStream(ctx, cfg); err != nil {
			return fmt.Errorf("stream %s: mark what is removed: %w", name, err)
		}
	}
	if s.CachedInfo().State.FirstSeq >= below {
		return nil
	}
	if err := s.Purge(ctx, jetstream.WithPurgeSequence(below)); err != nil {
		return fmt.Errorf("stream %s: remove what is below %d: %w", name, below, err)
	}
	return nil
}

// keptMark returns the metadata that the new configuration of a stream takes
// over from the old one.
func keptMark(old jetstream.StreamConfig) map[string]string {
	if mark, ok := old.Metadata[metaRemoved]; ok {
		return map[string]string{metaRemoved: mark}
	}
	return nil
}
