package dispatch

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/failpoint"
	"github.com/nightjar-edr/nightjar/pkg/tracing"
)

// Bounds of a page of outlines.
const (
	maxPage      = 200
	maxPageBytes = 2 << 20
)

// newUUID returns a random UUID, version 4.
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// checked makes sure that an endpoint's UUID has its form and that the view
// knows what the bucket holds now.
func (s *Service) checked(ctx context.Context, endpoint string) error {
	if !subject.IsUUID(endpoint) {
		return fault.New(fault.Invalid, "not the UUID of an endpoint: %q", endpoint)
	}
	return unavailable(s.current(ctx))
}

// unavailable makes a failure to reach the record one that may be repeated.
func unavailable(err error) error {
	if err == nil {
		return nil
	}
	return fault.New(fault.Unavailable, "commands cannot be reached: %v", err)
}

// encode returns a record as it is stored.
func encode(r *message.CommandRecord) ([]byte, error) {
	for _, b := range r.Blobs() {
		if len(b.Data) > message.MaxInlineBlob {
			return nil, fault.New(fault.TooLarge, "a value of %d bytes does not belong into a command's record", len(b.Data))
		}
		if b.Object != "" && !strings.HasPrefix(b.Object, r.Endpoint+"/") {
			return nil, fault.New(fault.Invalid, "object %q is not one of endpoint %s", b.Object, r.Endpoint)
		}
	}
	data, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode command: %w", err)
	}
	if len(data) > message.MaxCommandRecord {
		return nil, fault.New(fault.TooLarge, "command of %d bytes, at most %d are accepted", len(data), message.MaxCommandRecord)
	}
	return data, nil
}

// replace makes next the value of a command's key if the key still has the
// revision of e. It returns false when somebody else was first.
func (s *Service) replace(ctx context.Context, e *entry, next *message.CommandRecord) (bool, error) {
	data, err := encode(next)
	if err != nil {
		return false, err
	}
	_, err = s.kv.Update(ctx, message.CommandKey(next.Endpoint, next.UUID), data, e.revision)
	if errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		return false, nil
	}
	return err == nil, unavailable(err)
}

// step changes a command by f until the change is stored, and returns what
// was stored. f returns nil when there is nothing to change; it gets nil when
// the command does not exist.
func (s *Service) step(ctx context.Context, endpoint, command string, f func(*message.CommandRecord) (*message.CommandRecord, error)) (*message.CommandRecord, error) {
	for {
		e, err := s.load(endpoint, command)
		if err != nil {
			return nil, fmt.Errorf("load command: %w", err)
		}
		var old *message.CommandRecord
		if e != nil {
			old = &e.record
		}
		next, err := f(old)
		if next == nil || err != nil {
			return nil, err
		}
		done, err := s.replace(ctx, e, next)
		if err != nil {
			return nil, err
		}
		if done {
			return next, nil
		}
		if err := unavailable(s.current(ctx)); err != nil {
			return nil, err
		}
	}
}

func (s *Service) queue(ctx context.Context, q message.CommandQueueRequest) (message.CommandReply, error) {
	var none message.CommandReply
	if err := s.checked(ctx, q.Endpoint); err != nil {
		return none, err
	}
	if n, err := s.waiting(q.Endpoint); err != nil {
		return none, fmt.Errorf("count commands that wait: %w", err)
	} else if n >= s.cfg.MaxQueued {
		return none, fault.New(fault.Conflict, "%d commands wait for endpoint %s, no more are accepted (max-queued); cancel some or wait until it has fetched them", n, q.Endpoint)
	}
	if q.Timeout < 0 {
		return none, fault.New(fault.Invalid, "timeout: must not be negative")
	}
	r := message.CommandRecord{
		Endpoint: q.Endpoint, UUID: newUUID(), State: message.CommandQueued, Actor: q.Actor,
		Name: q.Name, Args: q.Args, Drop: q.Drop, Timeout: q.Timeout, Created: s.now().UTC(), TraceParent: tracing.Parent(ctx),
	}
	for i := range r.Drop {
		r.Drop[i].UUID = newUUID()
	}
	for _, path := range q.Fetch {
		if r.Fetch == nil {
			r.Fetch = make(map[string]message.CommandFile, len(q.Fetch))
		}
		r.Fetch[path] = message.CommandFile{UUID: newUUID()}
	}
	data, err := encode(&r)
	if err != nil {
		return none, err
	}
	failpoint.Hit(failpoint.QueueBeforeWrite)
	rev, err := s.kv.Create(ctx, message.CommandKey(r.Endpoint, r.UUID), data)
	if err != nil {
		return none, unavailable(err)
	}
	failpoint.Hit(failpoint.QueueAfterWrite)
	r.Order = rev
	s.log.Info("command queued", "endpoint", r.Endpoint, "command", r.UUID, "actor", r.Actor)
	if err := s.view.Wait(ctx, rev); err != nil {
		return none, fault.New(fault.Unavailable, "command %s is queued, do not send it again, but the view of commands has not come to it yet: %v", r.UUID, err)
	}
	return message.CommandReply{Command: &r, Revision: rev}, nil
}

func (s *Service) get(ctx context.Context, q message.CommandRequest) (message.CommandReply, error) {
	var reply message.CommandReply
	if err := s.checked(ctx, q.Endpoint); err != nil {
		return reply, err
	}
	reply.Revision = s.view.Position()
	if q.UUID != "" {
		e, err := s.load(q.Endpoint, q.UUID)
		if err != nil {
			return reply, fmt.Errorf("load command: %w", err)
		}
		if e != nil {
			reply.Command = &e.record
		}
		return reply, nil
	}
	err := s.newestFirst(q.Endpoint, 0, func(e *entry) bool {
		reply.Command = &e.record
		return false
	})
	if err != nil {
		return reply, fmt.Errorf("load newest command: %w", err)
	}
	return reply, nil
}

func (s *Service) list(ctx context.Context, q message.CommandsListRequest) (message.CommandsListReply, error) {
	reply := message.CommandsListReply{Commands: []message.CommandRecord{}}
	if err := s.checked(ctx, q.Endpoint); err != nil {
		return reply, err
	}
	limit := maxPage
	if q.Limit > 0 {
		limit = min(limit, q.Limit)
	}
	size := 0
	err := s.newestFirst(q.Endpoint, q.Before, func(e *entry) bool {
		o := e.record.Outline()
		n := outlineSize(&o)
		if len(reply.Commands) > 0 && (len(reply.Commands) == limit || size+n > maxPageBytes) {
			reply.Next = reply.Commands[len(reply.Commands)-1].Order
			return false
		}
		size += n
		reply.Commands = append(reply.Commands, o)
		return true
	})
	if err != nil {
		return reply, fmt.Errorf("list commands: %w", err)
	}
	return reply, nil
}

// outlineSize estimates the size of an outline on the wire from above, as a
// byte of text may become six in JSON.
func outlineSize(r *message.CommandRecord) int {
	n := 512 + 6*(len(r.Name)+len(r.Error)+len(r.Actor))
	for _, a := range r.Args {
		n += 6*len(a) + 3
	}
	for _, f := range r.Drop {
		n += 256 + 6*(len(f.Name)+len(f.Error))
	}
	for path, f := range r.Fetch {
		n += 256 + 6*(len(path)+len(f.Name)+len(f.Error))
	}
	return n
}

// next hands out the oldest command that waits, as it was before it was
// marked as sent.
func (s *Service) next(ctx context.Context, q message.CommandRequest) (message.CommandReply, error) {
	if err := s.checked(ctx, q.Endpoint); err != nil {
		return message.CommandReply{}, err
	}
	for {
		reply := message.CommandReply{Revision: s.view.Position()}
		e, err := s.oldestQueued(q.Endpoint)
		if err != nil {
			return reply, fmt.Errorf("look for a command: %w", err)
		}
		if e == nil {
			return reply, nil
		}
		sent := e.record
		sent.State, sent.Sent = message.CommandSent, s.now().UTC()
		failpoint.Hit(failpoint.NextBeforeMark)
		done, err := s.replace(ctx, e, &sent)
		if err != nil {
			return reply, err
		}
		if done {
			failpoint.Hit(failpoint.NextAfterMark)
			s.metrics.delivered.Inc()
			s.log.Info("command handed out", "endpoint", q.Endpoint, "command", sent.UUID)
			reply.Command = &e.record
			return reply, nil
		}
		if err := unavailable(s.current(ctx)); err != nil {
			return reply, err
		}
	}
}

func (s *Service) result(ctx context.Context, q message.CommandResultRequest) (message.CommandResultReply, error) {
	var reply message.CommandResultReply
	if err := s.checked(ctx, q.Endpoint); err != nil {
		return reply, err
	}
	var before []string
	stored, err := s.step(ctx, q.Endpoint, q.UUID, func(r *message.CommandRecord) (*message.CommandRecord, error) {
		if reply.Outcome = outcome(r); reply.Outcome != message.ResultAccepted {
			return nil, nil
		}
		before = r.Objects()
		next := *r
		next.State, next.Ended = message.CommandCompleted, s.now().UTC()
		next.Name, next.Args, next.Drop, next.Fetch = q.Name, q.Args, q.Drop, q.Fetch
		next.Stdout, next.Stderr, next.Error, next.ExpectJSON = q.Stdout, q.Stderr, q.Error, q.ExpectJSON
		return &next, nil
	})
	if err != nil {
		return reply, err
	}
	s.metrics.results.WithLabelValues(string(reply.Outcome)).Inc()
	if stored == nil {
		s.log.Warn("result ignored", "endpoint", q.Endpoint, "command", q.UUID, "reason", reply.Outcome)
		return reply, nil
	}
	failpoint.Hit(failpoint.ResultAfterWrite)
	s.roundTrip(stored)
	s.log.Info("command completed", "endpoint", q.Endpoint, "command", q.UUID)
	s.removeObjects(ctx, dropped(before, stored.Objects()))
	s.trim(ctx, q.Endpoint)
	return reply, nil
}

// roundTrip adds the time from the request for a command to its result to the
// trace of the request.
func (s *Service) roundTrip(r *message.CommandRecord) {
	span := s.cfg.Bus.Trace.Since(r.TraceParent, "command", r.Created)
	span.Endpoint(r.Endpoint)
	span.Event("handed out", r.Sent)
	span.End(nil)
}

// outcome tells what a result does to a command that stands as r.
func outcome(r *message.CommandRecord) message.CommandOutcome {
	if r == nil {
		return message.ResultForeign
	}
	switch r.State {
	case message.CommandSent:
		return message.ResultAccepted
	case message.CommandCompleted:
		return message.ResultRepeated
	case message.CommandExpired:
		return message.ResultLate
	}
	return message.ResultEarly
}

func (s *Service) cancel(ctx context.Context, q message.CommandRequest) (message.CommandReply, error) {
	var reply message.CommandReply
	if err := s.checked(ctx, q.Endpoint); err != nil {
		return reply, err
	}
	stored, err := s.step(ctx, q.Endpoint, q.UUID, func(r *message.CommandRecord) (*message.CommandRecord, error) {
		if r == nil {
			return nil, fault.New(fault.NotFound, "Unknown command: %s", q.UUID)
		}
		switch r.State {
		case message.CommandQueued:
		case message.CommandCancelled:
			return nil, fault.New(fault.Conflict, "Command %s is cancelled already", q.UUID)
		default:
			return nil, fault.New(fault.Conflict, "Command %s cannot be cancelled: it was sent at %s", q.UUID, r.Sent.Format(time.RFC3339))
		}
		next := *r
		next.State, next.Ended = message.CommandCancelled, s.now().UTC()
		next.Error = "Command was cancelled before it was sent"
		return &next, nil
	})
	if err != nil {
		return reply, err
	}
	failpoint.Hit(failpoint.CancelAfterWrite)
	s.log.Info("command cancelled", "endpoint", q.Endpoint, "command", q.UUID, "actor", q.Actor)
	s.trim(ctx, q.Endpoint)
	reply.Command, reply.Revision = stored, s.view.Position()
	return reply, nil
}

// forget deletes all commands of an endpoint.
func (s *Service) forget(ctx context.Context, q message.CommandRequest) (message.CommandsForgetReply, error) {
	var reply message.CommandsForgetReply
	for {
		if err := s.checked(ctx, q.Endpoint); err != nil {
			return reply, err
		}
		var all []*entry
		err := s.newestFirst(q.Endpoint, 0, func(e *entry) bool {
			all = append(all, e)
			return len(all) < maxPage
		})
		if err != nil {
			return reply, fmt.Errorf("list commands: %w", err)
		}
		if len(all) == 0 {
			return reply, nil
		}
		for _, e := range all {
			gone, err := s.remove(ctx, e)
			if err != nil {
				return reply, unavailable(err)
			}
			if gone {
				reply.Deleted++
			}
		}
	}
}
