package artifact

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/failpoint"
)

// join makes a file of its parts, if all are there, and removes them. While it
// does so for one of a file's uploads, others of the file wait for it. A client
// that goes away does not end it.
func (s *Store) join(ctx context.Context, id message.ArtifactID, total int) error {
	done := s.joins.DoChan(id.Part(0, total), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), uploadTimeout)
		defer cancel()
		return nil, s.joinParts(ctx, id, total)
	})
	select {
	case r := <-done:
		return r.Err
	case <-ctx.Done():
		return fmt.Errorf("%w: join: %w", ErrStore, ctx.Err())
	}
}

func (s *Store) joinParts(ctx context.Context, id message.ArtifactID, total int) error {
	parts := make([]*jetstream.ObjectInfo, total)
	size := uint64(0)
	// Agents send the last part last, so mostly it alone is looked for.
	for n := total; n > 0; n-- {
		info, err := s.content.Info(ctx, id.Part(n, total))
		if err != nil {
			return fmt.Errorf("part %d of %d: %w", n, total, err)
		}
		if !info.Exists() {
			return nil
		}
		parts[n-1] = &info.ObjectInfo
		size += info.Size
	}
	var err error
	if size > MaxJoined {
		err = fault.New(fault.TooLarge, "file is larger than %d bytes", int64(MaxJoined))
	} else {
		err = s.joinAs(ctx, parts, id.Object())
	}
	if err != nil && !fault.Is(err, fault.TooLarge) && !fault.Is(err, fault.Conflict) {
		return err
	}
	for _, p := range parts {
		// The description goes first: a part that is there is complete.
		s.forget(ctx, p.Name)
		failpoint.Hit(failpoint.ArtifactMidClean)
		s.content.Discard(ctx, p.NUID)
	}
	return err
}

func (s *Store) joinAs(ctx context.Context, parts []*jetstream.ObjectInfo, name string) error {
	contents := make([]io.Reader, len(parts))
	for i, p := range parts {
		contents[i] = s.content.Read(ctx, p)
	}
	d, err := s.write(ctx, io.MultiReader(contents...))
	if err != nil {
		if !errors.Is(err, ErrStore) {
			err = fmt.Errorf("%w: read a part: %w", ErrStore, err)
		}
		return err
	}
	defer s.discard(ctx, d)
	return s.name(ctx, d, name)
}
