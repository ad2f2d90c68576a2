package removal

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
)

// Stream returns what clears a stream, for Config.Clear: of the messages on the
// subjects of an endpoint, which filter makes of its UUID, all go up to the end
// that the removal names, and between there and where it has settled those of
// lower generations.
func Stream(js jetstream.JetStream, name string, filter func(endpoint string) string) func(context.Context, Removal) error {
	return func(ctx context.Context, r Removal) error { return clearStream(ctx, js, name, filter(r.Endpoint), r) }
}

func clearStream(ctx context.Context, js jetstream.JetStream, name, filter string, r Removal) error {
	s, err := js.Stream(ctx, name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil
	} else if err != nil {
		return fmt.Errorf("stream %s: %w", name, err)
	}
	end := r.Record.Ends[name]
	if end > 0 {
		if err := s.Purge(ctx, jetstream.WithPurgeSubject(filter), jetstream.WithPurgeSequence(end+1)); err != nil {
			return fmt.Errorf("purge %s from stream %s: %w", filter, name, err)
		}
	}
	for seq := end + 1; seq <= r.Record.Settled[name]; seq++ {
		m, err := s.GetMsg(ctx, seq, jetstream.WithGetMsgSubject(filter))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			break
		} else if err != nil {
			return fmt.Errorf("read stream %s from %d: %w", name, seq, err)
		}
		if seq = m.Sequence; seq > r.Record.Settled[name] || message.GenerationOf(m.Header) >= r.Record.Generation {
			continue
		}
		if err := stream.Drop(ctx, s, seq); err != nil {
			return fmt.Errorf("delete message %d of stream %s: %w", seq, name, err)
		}
	}
	return nil
}
