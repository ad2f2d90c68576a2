package dispatch

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
)

// orphanAge is how old an object without a command must be to be removed:
// long after any upload whose command is still to be recorded.
const orphanAge = 24 * time.Hour

// clockPatience is how long a clock that has jumped ahead ends no command and
// removes nothing: longer than commands usually take, so that results that are
// on their way still count, and not so long that commands that were handed out
// before a rest of the manager seem to be worked on for ever.
const clockPatience = time.Hour

// expire ends the commands that were handed out and not answered in time.
func (s *Service) expire(ctx context.Context) error {
	if err := s.current(ctx); err != nil {
		return err
	}
	due, err := s.due(s.judged())
	if err != nil {
		return fmt.Errorf("look for unanswered commands: %w", err)
	}
	for _, e := range due {
		next := e.record
		next.State, next.Ended = message.CommandExpired, s.now().UTC()
		next.Error = fmt.Sprintf("Command was delivered at %s and not answered within %s", next.Sent.Format(time.RFC3339), answerTime(&next))
		done, err := s.replace(ctx, e, &next)
		if err != nil {
			return err
		}
		if done { // else its result came in this moment, or another replica was first
			s.metrics.expired.Inc()
			s.log.Warn("command delivered and not answered", "endpoint", next.Endpoint, "command", next.UUID)
			s.trim(ctx, next.Endpoint)
		}
	}
	return nil
}

// trim deletes the commands of an endpoint that are more than are kept. What
// fails is tried again when the next command ends.
func (s *Service) trim(ctx context.Context, endpoint string) {
	err := s.current(ctx)
	var old []*entry
	if err == nil {
		old, err = s.surplus(endpoint, s.cfg.History)
	}
	for i := 0; err == nil && i < len(old); i++ {
		_, err = s.remove(ctx, old[i])
	}
	if err != nil && ctx.Err() == nil {
		s.metrics.errors.Inc()
		s.log.Error("old commands not deleted", "endpoint", endpoint, "error", err)
	}
}

// remove deletes a command and the objects it refers to. It returns false
// when somebody else changed or deleted it first.
func (s *Service) remove(ctx context.Context, e *entry) (bool, error) {
	key := message.CommandKey(e.record.Endpoint, e.record.UUID)
	err := s.kv.Purge(ctx, key, jetstream.LastRevision(e.revision), jetstream.PurgeTTL(stream.MarkerTTL))
	if errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("delete command %s: %w", key, err)
	}
	s.removeObjects(ctx, e.record.Objects())
	return true, nil
}

// removeObjects removes objects that no command refers to any more. What
// fails is left to tidy.
func (s *Service) removeObjects(ctx context.Context, names []string) {
	for _, name := range names {
		if err := s.removeObject(ctx, name); err != nil && ctx.Err() == nil {
			s.log.Warn("object not removed, will be tried again", "object", name, "error", err)
		}
	}
}

// removeObject removes an object without a trace.
func (s *Service) removeObject(ctx context.Context, name string) error {
	info, err := s.content.Info(ctx, name)
	if err == nil && info.Seq > 0 {
		err = s.content.Remove(ctx, name, info.NUID)
	}
	if err != nil {
		return fmt.Errorf("object %s: %w", name, err)
	}
	return nil
}

// chunkPrefix begins the subjects of the parts of objects.
var chunkPrefix = stream.ObjectChunks(stream.Files, "")

// tidy removes objects that no command refers to, and parts of objects that
// were never completed, once they are older than orphanAge.
func (s *Service) tidy(ctx context.Context) error {
	before := s.judged().Add(-orphanAge)
	list, err := s.objects.List(ctx, jetstream.ListObjectsShowDeleted())
	if err != nil && !errors.Is(err, jetstream.ErrNoObjectsFound) {
		return fmt.Errorf("list objects: %w", err)
	}
	// The commands are looked at after the objects: an object listed here
	// that is old enough has its command by now or never gets one.
	if err := s.current(ctx); err != nil {
		return err
	}
	known := make(map[string]bool, len(list))
	removed := 0
	for _, o := range list {
		known[o.NUID] = true
		if o.ModTime.After(before) {
			continue
		}
		if yes, err := s.referred(o.Name); err != nil {
			return fmt.Errorf("object %s: %w", o.Name, err)
		} else if yes && !o.Deleted {
			continue
		}
		if err := s.removeObject(ctx, o.Name); err != nil {
			return err
		}
		removed++
	}
	info, err := s.files.Info(ctx, jetstream.WithSubjectFilter(chunkPrefix+"*"))
	if err != nil {
		return fmt.Errorf("list parts of objects: %w", err)
	}
	for subject := range info.State.Subjects {
		if known[strings.TrimPrefix(subject, chunkPrefix)] {
			continue
		}
		last, err := s.files.GetLastMsgForSubject(ctx, subject)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		} else if err != nil {
			return fmt.Errorf("part of an object: %w", err)
		}
		if last.Time.After(before) {
			continue // an upload that goes on, or was described after the listing
		}
		if err := s.files.Purge(ctx, jetstream.WithPurgeSubject(subject)); err != nil {
			return fmt.Errorf("part of an object: %w", err)
		}
		removed++
	}
	if removed > 0 {
		s.log.Info("objects without a command removed", "count", removed)
	}
	return nil
}
