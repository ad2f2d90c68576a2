package gateway

import (
	"bufio"
	"errors"
	"io"
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/failpoint"
	"github.com/nightjar-edr/nightjar/services/api-gateway/internal/command"
)

func (s *Service) agentCommandRoutes() []route {
	return []route{
		{http.MethodGet, "/commands", s.agent(s.fetchCommand)},
		{http.MethodPost, "/commands", s.agent(s.postResult)},
	}
}

// fetchCommand hands out the command that has waited longest, as it was
// before it was handed out.
func (s *Service) fetchCommand(c *gin.Context, a agent) {
	if !s.commands.pending.have(a.uuid) {
		nothing(c.Writer)
		return
	}
	ctx := c.Request.Context()
	reply, err := ask[message.CommandReply](ctx, s, message.CommandsNext, message.CommandRequest{Endpoint: a.uuid})
	if err != nil {
		plainError(c.Writer, err)
		return
	}
	if reply.Command == nil {
		s.commands.pending.none(a.uuid, reply.Revision)
		nothing(c.Writer)
		return
	}
	failpoint.Hit(failpoint.CommandBeforeDeliver)
	var d command.Document
	d.Command(reply.Command)
	if text, ok := d.Inline(); ok {
		writeText(c.Writer, text)
		return
	}
	files, err := s.commands.store(ctx, s)
	if err == nil {
		err = command.Check(ctx, files, reply.Command)
	}
	if err != nil {
		s.cfg.Log.Error("command cannot be delivered", "endpoint", a.uuid, "command", reply.Command.UUID, "error", err)
		s.failCommand(c, a, reply.Command.UUID, "Command could not be delivered: its files cannot be read")
		unavailable(c.Writer, "the command cannot be delivered")
		return
	}
	c.Writer.Header().Set("Content-Type", contentText)
	out := bufio.NewWriterSize(c.Writer, 64<<10)
	err = d.Write(ctx, files, out)
	if err == nil {
		err = out.Flush()
	}
	if err != nil {
		s.cfg.Log.Warn("delivery of a command broken off", "endpoint", a.uuid, "command", reply.Command.UUID, "error", err)
		panic(http.ErrAbortHandler)
	}
}

// nothing answers that there is no command.
func nothing(w http.ResponseWriter) {
	w.Header().Set("Content-Type", contentText)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(http.StatusNoContent)
}

// failCommand completes a command with an error in place of its result.
func (s *Service) failCommand(c *gin.Context, a agent, id, text string) {
	_, err := ask[message.CommandResultReply](c.Request.Context(), s, message.CommandsResult,
		message.CommandResultRequest{Endpoint: a.uuid, UUID: id, Error: text})
	if err != nil {
		s.cfg.Log.Error("command not completed", "endpoint", a.uuid, "command", id, "error", err)
	}
}

// postResult takes a result. One that is of no use is answered with 200 as
// well, as agents expect; the log says why.
func (s *Service) postResult(c *gin.Context, a agent) {
	ctx := c.Request.Context()
	body, err := openBody(c.Request, maxResult)
	if err != nil {
		s.refuseResult(c, err)
		return
	}
	files, err := s.commands.store(ctx, s)
	if err != nil {
		plainError(c.Writer, err)
		return
	}
	held := int64(0)
	defer func() { s.commands.memory.Release(held) }()
	grow := func(n int) error {
		if held+int64(n) > oneResultMemory {
			return fault.New(fault.TooLarge, "result has too much beside its files")
		}
		if !s.commands.memory.TryAcquire(int64(n)) {
			return fault.New(fault.Unavailable, "no memory for more results at the moment")
		}
		held += int64(n)
		return nil
	}
	up := s.uploads(files, a.uuid)
	q, err := command.ReadResult(ctx, body, up, grow)
	if err != nil {
		s.discard(ctx, up)
		if errors.Is(err, command.ErrMalformed) {
			s.commands.malformed.Inc()
			s.cfg.Log.Warn("result ignored", "endpoint", a.uuid, "reason", err)
			// What is left is read, so that the answer reaches the agent.
			_, _ = io.Copy(io.Discard, body)
			return
		}
		s.refuseResult(c, err)
		return
	}
	q.Endpoint = a.uuid
	failpoint.Hit(failpoint.ResultBeforeRecord)
	reply, err := ask[message.CommandResultReply](ctx, s, message.CommandsResult, q)
	switch {
	case refused(err):
		s.discard(ctx, up)
		s.cfg.Log.Warn("result cannot be kept", "endpoint", a.uuid, "command", q.UUID, "error", err)
		s.failCommand(c, a, q.UUID, "Command was executed, but its result cannot be kept: it is too large")
	case err != nil:
		plainError(c.Writer, err)
	case reply.Outcome != message.ResultAccepted:
		s.discard(ctx, up)
	default:
		s.discard(ctx, up, command.ResultObjects(q)...)
	}
}

// refuseResult answers for a result that could not be read or stored.
func (s *Service) refuseResult(c *gin.Context, err error) {
	s.cfg.Log.Warn("result refused", "remote", peer(c.Request), "error", err)
	var f *fault.Error
	switch {
	case errors.Is(err, errCoding), errors.As(err, &f):
	case errors.Is(err, command.ErrStore):
		err = fault.New(fault.Unavailable, "the result cannot be stored at the moment")
	default:
		_, err = refusal(err)
	}
	plainError(c.Writer, err)
}
