package gateway

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/failpoint"
	"github.com/nightjar-edr/nightjar/services/api-gateway/internal/command"
)

func (s *Service) commandRoutes() []route {
	return []route{
		{http.MethodGet, "/endpoints/:uuid/command", s.read(s.getCommand)},
		{http.MethodPost, "/endpoints/:uuid/command", s.change("command.queue", s.postCommand)},
		{http.MethodGet, "/endpoints/:uuid/command/:field", s.read(s.getCommandField)},
		{http.MethodDelete, "/endpoints/:uuid/command/:command", s.change("command.cancel", s.cancelCommand)},
		{http.MethodGet, "/endpoints/:uuid/commands", s.read(s.listCommands)},
		{http.MethodGet, "/endpoints/:uuid/commands/:command", s.read(s.getOneCommand)},
	}
}

// showCommand answers with a command, null when there is none.
func (s *Service) showCommand(ctx context.Context, r *message.CommandRecord) (result, error) {
	if r == nil {
		return result{}, nil
	}
	var d command.Document
	d.Command(r)
	return s.document(ctx, &d, r)
}

func (s *Service) getCommand(ctx context.Context, q *call) (result, error) {
	wait, err := q.flag("wait")
	if err != nil {
		return result{}, err
	}
	timeout := waitDefault
	if q.query.Has("wait-timeout") {
		timeout, err = time.ParseDuration(q.query.Get("wait-timeout"))
		if err != nil || timeout < 0 || timeout > waitMax {
			return result{}, fault.New(fault.Invalid, "Failed to parse wait-timeout parameter, it must be a duration from 0 to %s", waitMax)
		}
	}
	if err := s.exists(ctx, q.uuid()); err != nil {
		return result{}, err
	}
	var r *message.CommandRecord
	if wait {
		r, err = s.awaitCommand(ctx, q.uuid(), timeout)
	} else {
		r, err = s.newestCommand(ctx, q.uuid())
	}
	if err != nil {
		return result{}, err
	}
	return s.showCommand(ctx, r)
}

// awaitCommand waits until the command that is the newest now has ended, and
// returns it as it stands then or after timeout.
func (s *Service) awaitCommand(ctx context.Context, uuid string, timeout time.Duration) (*message.CommandRecord, error) {
	changes, stop := s.commands.pending.watch(uuid)
	defer stop()
	limit := time.NewTimer(timeout)
	defer limit.Stop()
	refresh := time.NewTicker(waitRefresh)
	defer refresh.Stop()
	r, err := s.newestCommand(ctx, uuid)
	for {
		if err != nil || r == nil || r.State.Ended() {
			return r, err
		}
		select {
		case <-limit.C:
			return r, nil
		case <-ctx.Done():
			return nil, fault.New(fault.Unavailable, "waiting was broken off")
		case <-changes:
		case <-refresh.C:
		}
		var reply message.CommandReply
		reply, err = ask[message.CommandReply](ctx, s, message.CommandsGet, message.CommandRequest{Endpoint: uuid, UUID: r.UUID})
		if err == nil && reply.Command == nil {
			return r, nil // deleted meanwhile
		}
		r = reply.Command
	}
}

func (s *Service) postCommand(ctx context.Context, q *call) (result, error) {
	body, err := readBody(q.http, maxCommand)
	if err != nil {
		return result{}, err
	}
	api, req, err := command.Parse(body)
	if err != nil {
		return result{}, err
	}
	e, err := s.endpoint(ctx, q.uuid())
	if err != nil {
		return result{}, err
	}
	req.Endpoint, req.Actor = q.uuid(), q.operator
	if len(api.DropFiles) > 0 {
		files, err := s.commands.store(ctx, s)
		if err != nil {
			return result{}, err
		}
		up := s.uploads(files, q.uuid())
		if req.Drop, err = command.ReadDrops(ctx, s.cfg.DropDir, api.DropFiles, up); err != nil {
			s.discard(ctx, up)
			return result{}, err
		}
		failpoint.Hit(failpoint.CommandBeforeQueue)
		r, err := s.queueCommand(ctx, req)
		if refused(err) {
			s.discard(ctx, up)
		}
		if err != nil {
			return result{}, err
		}
		return s.endpointWith(ctx, e, r)
	}
	r, err := s.queueCommand(ctx, req)
	if err != nil {
		return result{}, err
	}
	return s.endpointWith(ctx, e, r)
}

func (s *Service) queueCommand(ctx context.Context, req *message.CommandQueueRequest) (*message.CommandRecord, error) {
	reply, err := ask[message.CommandReply](ctx, s, message.CommandsQueue, req)
	if err == nil && reply.Command == nil {
		err = fmt.Errorf("queued command is missing in the answer")
	}
	return reply.Command, err
}

func (s *Service) getCommandField(ctx context.Context, q *call) (result, error) {
	if err := s.exists(ctx, q.uuid()); err != nil {
		return result{}, err
	}
	r, err := s.newestCommand(ctx, q.uuid())
	if err != nil {
		return result{}, err
	}
	if r == nil {
		return result{}, fault.New(fault.NotFound, "Command is not set for endpoint: %s", q.uuid())
	}
	var d command.Document
	part := message.CommandRecord{UUID: r.UUID}
	switch field := q.gin.Param("field"); field {
	case "stdout":
		part.Stdout = r.Stdout
		d.Blob(r.Stdout)
	case "stderr":
		part.Stderr = r.Stderr
		d.Blob(r.Stderr)
	case "error":
		d.Value(r.Error)
	case "completed":
		d.Value(r.State.Ended())
	case "files", "fetch":
		part.Fetch = r.Fetch
		d.Fetch(r)
	default:
		return result{}, fault.New(fault.Invalid, "Field %s not handled", field)
	}
	return s.document(ctx, &d, &part)
}

func (s *Service) cancelCommand(ctx context.Context, q *call) (result, error) {
	if err := s.exists(ctx, q.uuid()); err != nil {
		return result{}, err
	}
	reply, err := ask[message.CommandReply](ctx, s, message.CommandsCancel,
		message.CommandRequest{Endpoint: q.uuid(), UUID: q.gin.Param("command"), Actor: q.operator})
	if err != nil {
		return result{}, err
	}
	return s.showCommand(ctx, reply.Command)
}

func (s *Service) getOneCommand(ctx context.Context, q *call) (result, error) {
	if err := s.exists(ctx, q.uuid()); err != nil {
		return result{}, err
	}
	id := q.gin.Param("command")
	reply, err := ask[message.CommandReply](ctx, s, message.CommandsGet, message.CommandRequest{Endpoint: q.uuid(), UUID: id})
	if err == nil && reply.Command == nil {
		err = fault.New(fault.NotFound, "Unknown command: %s", id)
	}
	if err != nil {
		return result{}, err
	}
	return s.showCommand(ctx, reply.Command)
}

// listCommands answers with an endpoint's commands, newest first, without the
// contents of files and output.
func (s *Service) listCommands(ctx context.Context, q *call) (result, error) {
	left, err := q.number("limit", historyPage)
	if err != nil {
		return result{}, err
	}
	if err := s.exists(ctx, q.uuid()); err != nil {
		return result{}, err
	}
	req := message.CommandsListRequest{Endpoint: q.uuid()}
	return result{list: array(func(ctx context.Context) ([]byte, bool, error) {
		if left == 0 {
			return nil, false, nil
		}
		req.Limit = left
		reply, err := ask[message.CommandsListReply](ctx, s, message.CommandsList, req)
		if err != nil {
			return nil, false, err
		}
		page := make([]command.HistoryEntry, 0, len(reply.Commands))
		for i := range reply.Commands {
			page = append(page, command.History(&reply.Commands[i]))
		}
		left -= min(left, len(page))
		req.Before = reply.Next
		elements, err := joined(page)
		return elements, reply.Next != 0 && left > 0, err
	})}, nil
}
