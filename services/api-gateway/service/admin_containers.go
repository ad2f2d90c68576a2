package gateway

import (
	"bufio"
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/objects"
)

const (
	// maxContainer bounds the body of a container, inflated: its text, and a
	// carriage return for each line.
	maxContainer = message.MaxContainerSize + message.MaxContainerLines
	// containerTimeout is how long the rule-engine may take to change a
	// container.
	containerTimeout = 55 * time.Second
)

func (s *Service) containerRoutes() []route {
	return []route{
		{http.MethodGet, "/containers", s.read(s.listContainers)},
		{http.MethodGet, "/containers/:container", s.showContainer},
		{http.MethodPut, "/containers/:container", s.change("container.replace", s.putContainer(false))},
		{http.MethodPost, "/containers/:container", s.change("container.append", s.putContainer(true))},
		{http.MethodDelete, "/containers/:container", s.change("container.delete", s.deleteContainer)},
	}
}

// newestContainers returns the containers once they hold everything that was
// written before the call.
func (s *Service) newestContainers(ctx context.Context) (*containerSet, error) {
	set, err := s.containers.get(ctx)
	if err != nil || set.store == nil {
		return set, err
	}
	last, err := set.store.Last(ctx)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "the containers cannot be looked at: %v", err)
	}
	if set, err = s.containers.await(ctx, last); err == nil && set.revision < last {
		err = fault.New(fault.Unavailable, "the containers have changed and are not known yet")
	}
	return set, err
}

func (s *Service) listContainers(ctx context.Context, _ *call) (result, error) {
	set, err := s.newestContainers(ctx)
	if err != nil {
		return result{}, err
	}
	list := make([]message.Container, 0, len(set.by))
	for _, name := range set.names() {
		list = append(list, set.by[name].describe())
	}
	return result{data: list}, nil
}

// describe tells of a container as the admin API shows it. One that cannot be
// read has no lines.
func (c *container) describe() message.Container {
	return message.Container{Name: c.info.Name, Lines: c.lines, Size: c.info.Size, SHA256: c.info.SHA256(), Modified: c.info.ModTime}
}

// showContainer answers with a container's lines: in an envelope as a list, or
// as text.
func (s *Service) showContainer(c *gin.Context) {
	q, ok := s.authorizeOperator(c)
	if !ok {
		plain(c.Writer, http.StatusForbidden, "Not Authorized")
		return
	}
	var (
		ct   *container
		text *bufio.Reader
		raw  bool
	)
	ctx := c.Request.Context()
	res, err := s.handle(ctx, q, func(ctx context.Context, q *call) (_ result, err error) {
		if raw, err = q.flag("raw"); err == nil {
			ct, text, err = s.openContainer(ctx, q.gin.Param("container"))
		}
		return result{write: func(_ context.Context, w io.Writer) error { return writeLines(w, text) }}, err
	})
	if err != nil || !raw {
		s.respond(ctx, c.Writer, res, err)
		return
	}
	h := c.Writer.Header()
	h.Set("Content-Type", contentText)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.FormatUint(ct.info.Size, 10))
	if _, err := io.Copy(c.Writer, text); err != nil {
		if ctx.Err() == nil {
			s.cfg.Log.Warn("container is broken off", "container", ct.info.Name, "error", err)
		}
		panic(http.ErrAbortHandler)
	}
}

// openContainer begins to read a container, so that what fails by then is
// answered with its error.
func (s *Service) openContainer(ctx context.Context, name string) (*container, *bufio.Reader, error) {
	set, err := s.newestContainers(ctx)
	if err != nil {
		return nil, nil, err
	}
	ct, ok := set.by[name]
	if !ok {
		return nil, nil, fault.New(fault.NotFound, "Unknown container: %s", name)
	}
	text := bufio.NewReaderSize(set.store.Read(ctx, &ct.info.ObjectInfo), writePiece)
	if _, err := text.Peek(1); err != nil && !errors.Is(err, io.EOF) {
		s.cfg.Log.Warn("container cannot be read", "container", name, "error", err)
		return nil, nil, errContainerUnread
	}
	return ct, text, nil
}

// putContainer makes a handler that takes a body of lines and replaces a
// container with them, or adds them to it.
func (s *Service) putContainer(add bool) adminHandler {
	return func(ctx context.Context, q *call) (result, error) {
		q.target = q.gin.Param("container")
		if !message.IsContainerName(q.target) {
			return result{}, fault.New(fault.Invalid, "Invalid container name %q: want 1 to 128 letters, digits, underscores, dots or dashes", q.target)
		}
		if media, _, err := mime.ParseMediaType(q.http.Header.Get("Content-Type")); err == nil && media == "application/json" {
			return result{}, fault.New(fault.Invalid, "The body of a container is text, one entry a line, not JSON")
		}
		if err := s.cfg.Full(); err != nil {
			return result{}, fault.New(fault.Unavailable, "the manager cannot store more: %v", err)
		}
		set, err := s.containers.get(ctx)
		if err == nil && set.store == nil {
			err = fault.New(fault.Unavailable, "the object store of containers is not there yet")
		}
		if err != nil {
			return result{}, err
		}
		draft, err := receiveContainer(ctx, set.store, q.http)
		if err != nil {
			return result{}, err
		}
		reply, err := changeContainer(ctx, s, message.ContainersPut,
			message.ContainerPutRequest{Name: q.target, Append: add, Content: message.ContainerContent(*draft), Actor: q.operator})
		if refused(err) {
			set.store.Discard(ctx, draft.ID)
		}
		if err != nil {
			return result{}, err
		}
		return result{data: reply.Container}, nil
	}
}

// receiveContainer stores a body of lines as a draft.
func receiveContainer(ctx context.Context, store *objects.Store, r *http.Request) (*objects.Draft, error) {
	body, err := openBody(r, maxContainer)
	if err != nil {
		return nil, bodyFailure(err)
	}
	draft, err := store.Write(ctx, message.NewContainerText(body, true))
	var f *fault.Error
	switch {
	case err == nil:
		return draft, nil
	case errors.Is(err, objects.ErrStore):
		return nil, fault.New(fault.Unavailable, "the container cannot be stored at the moment")
	case errors.As(err, &f):
		// What is left is read, so that the answer reaches the client.
		_, _ = io.Copy(io.Discard, body)
		return nil, fault.New(f.Kind, "Container refused: %s", f.Message)
	}
	return nil, bodyFailure(err)
}

func (s *Service) deleteContainer(ctx context.Context, q *call) (result, error) {
	q.target = q.gin.Param("container")
	_, err := changeContainer(ctx, s, message.ContainersDelete, message.ContainerDeleteRequest{Name: q.target, Actor: q.operator})
	return result{}, err
}

// changeContainer asks for a change and waits until agents see it.
func changeContainer(ctx context.Context, s *Service, subject string, q any) (message.ContainerReply, error) {
	asking, cancel := context.WithTimeout(ctx, containerTimeout)
	defer cancel()
	reply, err := bus.Call[message.ContainerReply](asking, s.cfg.Bus, subject, q)
	if err == nil {
		_, err := s.containers.await(ctx, reply.Revision)
		if err != nil {
			s.cfg.Log.Warn("agents do not see a change of a container yet", "error", err)
		}
	}
	return reply, err
}
