package ruleengine

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"maps"
	"regexp"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/objects"
)

const (
	// containerTimeout bounds a change of a container.
	containerTimeout = 50 * time.Second
	// remainsAge is the age from which content that has no name is removed.
	// No upload waits so long for its name.
	remainsAge   = time.Hour
	tidyInterval = 15 * time.Minute
)

// contentID is what content is stored under: one token of a subject.
var contentID = regexp.MustCompile(`^[A-Za-z0-9]{1,64}$`)

// putContainer replaces a container or adds lines to it. It answers when rules
// use the result here.
func (s *Service) putContainer(ctx context.Context, q message.ContainerPutRequest) (reply message.ContainerReply, err error) {
	if !message.IsContainerName(q.Name) || !contentID.MatchString(q.Content.ID) {
		return reply, fault.New(fault.Invalid, "malformed name of a container or of its content")
	}
	draft := objects.Draft(q.Content)
	lines, err := s.checkContent(ctx, &draft)
	switch {
	case err != nil:
		return reply, containerFault(err)
	case q.Append && lines == 0:
		return reply, fault.New(fault.Invalid, "No lines to append to container %s", q.Name)
	}
	var garbage []string
	defer func() {
		for _, id := range garbage {
			s.objects.Discard(ctx, id)
		}
	}()
	after, err := s.changeContainer(ctx, q.Name, func(before objects.Info) (objects.Info, error) {
		if !q.Append || !before.Exists() {
			after, err := s.objects.Name(ctx, q.Name, &draft, before.Metadata, before)
			if err == nil && before.Exists() {
				garbage = append(garbage, before.NUID)
			}
			return after, err
		}
		whole, n, err := s.join(ctx, before, &draft)
		if err != nil {
			return objects.Info{}, err
		}
		after, err := s.objects.Name(ctx, q.Name, whole, before.Metadata, before)
		switch {
		case err == nil:
			lines, garbage = n, append(garbage, before.NUID, draft.ID)
		case !errors.Is(err, objects.ErrUncertain):
			s.objects.Discard(ctx, whole.ID)
		}
		return after, err
	})
	if err != nil {
		return reply, err
	}
	verb := "container replaced"
	if q.Append {
		verb = "lines added to container"
	}
	s.cfg.Log.Info(verb, "container", q.Name, "lines", lines, "actor", q.Actor)
	reply = message.ContainerReply{Container: describe(after, lines), Revision: after.Seq}
	return reply, s.containerInForce(ctx, q.Name, after.Seq)
}

// checkContent reads all of a draft and returns how many lines it has.
func (s *Service) checkContent(ctx context.Context, d *objects.Draft) (lines int, err error) {
	text := message.NewContainerText(s.objects.ReadDraft(ctx, d), true)
	if _, err := io.Copy(io.Discard, text); err != nil {
		return 0, err
	}
	if text.Size() != d.Size {
		return 0, fault.New(fault.Invalid, "the lines are not in their normal form")
	}
	return text.Lines(), nil
}

// join writes a container and added lines as a new draft, and returns how many
// lines it has.
func (s *Service) join(ctx context.Context, before objects.Info, added *objects.Draft) (*objects.Draft, int, error) {
	// The first of the readers ends its last line whoever wrote it.
	text := message.NewContainerText(io.MultiReader(
		message.NewContainerText(s.objects.Read(ctx, &before.ObjectInfo), false), s.objects.ReadDraft(ctx, added)), false)
	whole, err := s.objects.Write(ctx, text)
	if fault.Is(err, fault.TooLarge) {
		err = fault.New(fault.TooLarge, "Container %s would be too large: %v", before.Name, err)
	}
	return whole, text.Lines(), err
}

// deleteContainer deletes a container. It answers when rules that use it wait
// for it here.
func (s *Service) deleteContainer(ctx context.Context, q message.ContainerDeleteRequest) (reply message.ContainerReply, err error) {
	var was objects.Info
	after, err := s.changeContainer(ctx, q.Name, func(before objects.Info) (objects.Info, error) {
		if !before.Exists() {
			return objects.Info{}, fault.New(fault.NotFound, "Unknown container: %s", q.Name)
		}
		was = before
		return s.objects.Delete(ctx, before)
	})
	if err != nil {
		return reply, err
	}
	defer s.objects.Discard(ctx, was.NUID)
	s.cfg.Log.Info("container deleted", "container", q.Name, "actor", q.Actor)
	return message.ContainerReply{Revision: after.Seq}, s.containerInForce(ctx, q.Name, after.Seq)
}

// changeContainer gives f the newest description of a container and writes
// what it returns, again with a newer one where another replica was faster.
// The changes of this replica come one after the other.
func (s *Service) changeContainer(ctx context.Context, name string, f func(before objects.Info) (objects.Info, error)) (objects.Info, error) {
	select {
	case s.containerTurn <- struct{}{}:
		defer func() { <-s.containerTurn }()
	case <-ctx.Done():
		return objects.Info{}, fault.New(fault.Unavailable, "containers are being changed by others")
	}
	for attempt := range maxConflicts {
		before, err := s.objects.Info(ctx, name)
		if err != nil {
			return objects.Info{}, containerFault(err)
		}
		after, err := f(before)
		if err == nil || !s.overtaken(ctx, err, before, name) {
			return after, containerFault(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(attempt) * 5 * time.Millisecond):
		}
	}
	return objects.Info{}, fault.New(fault.Unavailable, "container %s is being changed by others", name)
}

// overtaken tells whether a change failed because of another one: the name has
// another description by now, or its content is gone with it.
func (s *Service) overtaken(ctx context.Context, err error, before objects.Info, name string) bool {
	var f *fault.Error
	switch {
	case errors.Is(err, objects.ErrChanged):
		return true
	case errors.Is(err, objects.ErrUncertain), errors.As(err, &f):
		return false
	}
	now, lookup := s.objects.Info(ctx, name)
	return lookup == nil && now.Seq != before.Seq
}

// containerFault makes the error of a change that failed.
func containerFault(err error) error {
	var f *fault.Error
	switch {
	case err == nil || errors.As(err, &f):
		return err
	case errors.Is(err, objects.ErrUncertain):
		return fault.New(fault.Unavailable, "whether the container was changed is not known: %v", err)
	}
	return fault.New(fault.Unavailable, "the container cannot be changed at the moment: %v", err)
}

func (s *Service) containerInForce(ctx context.Context, name string, revision uint64) error {
	if err := s.containers.await(ctx, name, revision); err != nil {
		return fault.New(fault.Unavailable, "the container is changed and not in force yet: %v", err)
	}
	return nil
}

// describe tells of a container.
func describe(info objects.Info, lines int) message.Container {
	return message.Container{Name: info.Name, Lines: lines, Size: info.Size, SHA256: info.SHA256(), Modified: info.ModTime}
}

// importContainers stores the containers of the folders whose file is not the
// one of their last import. So what was changed or deleted since by other means
// stays so.
func (s *Service) importContainers(ctx context.Context) error {
	for _, f := range s.containerFiles {
		if err := s.importContainer(ctx, f); err != nil {
			return f.fail(err)
		}
	}
	return nil
}

func (s *Service) importContainer(ctx context.Context, f containerFile) error {
	info, err := s.changeContainer(ctx, f.name, func(before objects.Info) (objects.Info, error) {
		if before.Metadata[message.ContainerImported] == f.digest {
			return before, nil
		}
		metadata := maps.Clone(before.Metadata)
		if metadata == nil {
			metadata = map[string]string{}
		}
		metadata[message.ContainerImported] = f.digest
		if before.Exists() && before.Digest == f.digest {
			return s.objects.Annotate(ctx, metadata, before)
		}
		return s.storeFile(ctx, f, metadata, before)
	})
	if err != nil {
		return err
	}
	return s.containers.await(ctx, f.name, info.Seq)
}

// storeFile makes a file the content of its container.
func (s *Service) storeFile(ctx context.Context, f containerFile, metadata map[string]string, before objects.Info) (objects.Info, error) {
	var (
		draft *objects.Draft
		lines int
	)
	err := f.read(func(text *message.ContainerText) (err error) {
		draft, err = s.objects.Write(ctx, text)
		lines = text.Lines()
		return err
	})
	if err != nil {
		return objects.Info{}, err
	}
	// The file may have changed since its digest was taken.
	metadata[message.ContainerImported] = draft.Digest
	info, err := s.objects.Name(ctx, f.name, draft, metadata, before)
	switch {
	case err == nil && before.Exists():
		s.objects.Discard(ctx, before.NUID)
	case err != nil && !errors.Is(err, objects.ErrUncertain):
		s.objects.Discard(ctx, draft.ID)
	}
	if err == nil {
		s.cfg.Log.Info("container imported", "container", f.name, "lines", lines)
	}
	return info, err
}

// tidyContainers removes what remains of uploads that broke off and of
// containers that were replaced, at the start and from time to time, until ctx
// ends.
func (s *Service) tidyContainers(ctx context.Context) {
	lifecycle.Repeat(ctx, tidyInterval, func() {
		if n, err := s.objects.Tidy(ctx, s.clock.Now().Add(-remainsAge)); err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn("remains of containers not removed, will be tried again", "error", err)
		} else if n > 0 {
			s.cfg.Log.Info("remains of containers removed", "count", n)
		}
	})
}

// whileServing ends ctx when the service stops, so that a long change does not
// hold it up.
func whileServing[Q, A any](s *Service, f func(context.Context, Q) (A, error)) func(context.Context, Q) (A, error) {
	return func(ctx context.Context, q Q) (A, error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		go func() {
			select {
			case <-s.ending:
				cancel()
			case <-ctx.Done():
			}
		}()
		return f(ctx, q)
	}
}

// digestOf returns the SHA-256 of all that r gives, in the form of object
// stores.
func digestOf(r io.Reader) (string, error) {
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return "", err
	}
	return jetstream.GetObjectDigestValue(h), nil
}
