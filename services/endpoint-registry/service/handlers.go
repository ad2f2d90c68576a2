package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/failpoint"
	"github.com/nightjar-edr/nightjar/pkg/view"
)

// Bounds of a page of endpoints.
const (
	defaultPage = 500
	maxPage     = 5000
)

// maxHostname bounds a hostname in bytes, far above what DNS and Windows
// allow.
const maxHostname = 1024

func unknown(uuid string) error { return fault.New(fault.NotFound, "Unknown endpoint: %s", uuid) }

// unavailable marks failures that may pass as such; others stay as they are.
func unavailable(err error) error {
	var known *fault.Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	for _, passing := range []error{
		context.DeadlineExceeded, context.Canceled, badger.ErrDBClosed,
		nats.ErrTimeout, nats.ErrNoResponders, nats.ErrConnectionClosed, nats.ErrConnectionReconnecting, nats.ErrReconnectBufExceeded,
		jetstream.ErrNoStreamResponse, view.ErrGap,
	} {
		if errors.Is(err, passing) {
			return fault.New(fault.Unavailable, "%s", err)
		}
	}
	var api *jetstream.APIError
	if errors.As(err, &api) && api.Code >= 500 {
		return fault.New(fault.Unavailable, "%s", err)
	}
	return err
}

// overtaken tells whether a compare-and-set failed because of another change.
func overtaken(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) &&
		(api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// attempt calls change with a current view until it is not overtaken by
// another change, or ctx ends.
func (s *Service) attempt(ctx context.Context, change func() error) error {
	for {
		if err := s.view.Sync(ctx); err != nil {
			return unavailable(err)
		}
		err := change()
		if !overtaken(err) {
			return unavailable(err)
		}
		s.metrics.conflicts.Inc()
	}
}

// update writes a record over the one of a revision, 0 for none, and waits
// until the view holds it.
func (s *Service) update(ctx context.Context, key string, value any, revision uint64) (uint64, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return 0, fmt.Errorf("encode record %s: %w", key, err)
	}
	var written uint64
	failpoint.Hit(failpoint.EndpointBeforeWrite)
	if revision == 0 {
		written, err = s.kv.Create(ctx, key, data)
	} else {
		written, err = s.kv.Update(ctx, key, data, revision)
	}
	if err != nil {
		return 0, fmt.Errorf("write record %s: %w", key, err)
	}
	failpoint.Hit(failpoint.EndpointAfterWrite)
	return written, s.view.Wait(ctx, written)
}

func (s *Service) get(ctx context.Context, q message.EndpointRequest) (message.EndpointReply, error) {
	if err := s.view.Sync(ctx); err != nil {
		return message.EndpointReply{}, unavailable(err)
	}
	e, shown, ok := s.index.get(q.UUID)
	if !ok {
		return message.EndpointReply{}, unknown(q.UUID)
	}
	return message.EndpointReply{Endpoint: shown, Revision: e.Revision}, nil
}

func (s *Service) list(ctx context.Context, q message.ListRequest) (message.ListReply, error) {
	var after place
	if q.After != "" {
		var err error
		if after, err = parseCursor(q.After); err != nil {
			return message.ListReply{}, fault.New(fault.Invalid, "after: %v", err)
		}
	}
	switch {
	case q.Limit < 0:
		return message.ListReply{}, fault.New(fault.Invalid, "limit: %d is negative", q.Limit)
	case q.Limit == 0:
		q.Limit = defaultPage
	}
	if err := s.view.Sync(ctx); err != nil {
		return message.ListReply{}, unavailable(err)
	}
	return s.index.page(after, min(q.Limit, maxPage)), nil
}

// create adds an endpoint with a new uuid and key. When the answer gets lost,
// an endpoint that nobody knows the key of may stay behind.
func (s *Service) create(ctx context.Context, _ struct{}) (reply message.EndpointReply, err error) {
	err = s.attempt(ctx, func() error {
		r := message.EndpointRecord{UUID: newUUID(), Key: newKey(), Created: s.index.nextCreated(time.Now().UTC())}
		revision, err := s.update(ctx, r.UUID, r, 0)
		reply = message.EndpointReply{Endpoint: message.Endpoint{UUID: r.UUID, Key: r.Key}, Revision: revision}
		return err
	})
	if err != nil {
		return message.EndpointReply{}, err
	}
	return reply, nil
}

// delete removes an endpoint and returns it as it was.
func (s *Service) delete(ctx context.Context, q message.EndpointRequest) (reply message.EndpointReply, err error) {
	err = s.attempt(ctx, func() error {
		e, shown, ok := s.index.get(q.UUID)
		if !ok {
			return unknown(q.UUID)
		}
		reply.Endpoint = shown
		if err := s.kv.Delete(ctx, q.UUID, jetstream.LastRevision(e.Revision)); err != nil {
			return fmt.Errorf("delete record %s: %w", q.UUID, err)
		}
		failpoint.Hit(failpoint.EndpointAfterDelete)
		if err := s.view.Sync(ctx); err != nil {
			return err
		}
		reply.Revision = s.view.Position() // the deletion's, or a later one
		return nil
	})
	if err != nil {
		return message.EndpointReply{}, err
	}
	return reply, nil
}

// bind records an endpoint's hostname at its first contact. An endpoint that
// does not name its host leaves one without a hostname as it is.
func (s *Service) bind(ctx context.Context, q message.EndpointRequest) (message.EndpointReply, error) {
	if len(q.Hostname) > maxHostname {
		return message.EndpointReply{}, fault.New(fault.Invalid, "hostname: longer than %d bytes", maxHostname)
	}
	choose := func(bound string) (string, error) {
		if bound != "" && bound != q.Hostname {
			return "", fault.New(fault.Conflict, "endpoint %s is bound to another hostname", q.UUID)
		}
		return q.Hostname, nil
	}
	// When a whole fleet comes for the first time, asking whether the view is
	// current costs as much as the rest. It most likely is, and a change by an
	// older one is not taken.
	if reply, err := s.renamed(ctx, q.UUID, choose); err == nil {
		return reply, nil
	}
	return s.rename(ctx, q.UUID, choose)
}

// release makes an endpoint's hostname free to be recorded again.
func (s *Service) release(ctx context.Context, q message.EndpointRequest) (message.EndpointReply, error) {
	return s.rename(ctx, q.UUID, func(string) (string, error) { return "", nil })
}

// rename sets an endpoint's hostname to what choose makes of the current one.
func (s *Service) rename(ctx context.Context, uuid string, choose func(string) (string, error)) (reply message.EndpointReply, err error) {
	err = s.attempt(ctx, func() (err error) {
		reply, err = s.renamed(ctx, uuid, choose)
		return err
	})
	if err != nil {
		return message.EndpointReply{}, err
	}
	return reply, nil
}

// renamed is rename by what the view holds.
func (s *Service) renamed(ctx context.Context, uuid string, choose func(string) (string, error)) (reply message.EndpointReply, err error) {
	e, shown, ok := s.index.get(uuid)
	if !ok {
		return reply, unknown(uuid)
	}
	name, err := choose(e.Record.Hostname)
	if err != nil {
		return reply, err
	}
	if name != e.Record.Hostname {
		e.Record.Hostname = name
		if e.Revision, err = s.update(ctx, uuid, e.Record, e.Revision); err != nil {
			return reply, err
		}
	}
	shown.Hostname = name
	return message.EndpointReply{Endpoint: shown, Revision: e.Revision}, nil
}
