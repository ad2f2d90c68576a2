package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/failpoint"
)

// endpointPage is how many endpoints are asked for at once.
const endpointPage = 500

func (s *Service) endpointRoutes() []route {
	return []route{
		{http.MethodGet, "/endpoints", s.read(s.listEndpoints)},
		{http.MethodPut, "/endpoints", s.change("endpoint.create", s.createEndpoint)},
		{http.MethodGet, "/endpoints/:uuid", s.read(s.getEndpoint)},
		{http.MethodDelete, "/endpoints/:uuid", s.change("endpoint.delete", s.deleteEndpoint)},
		{http.MethodDelete, "/endpoints/:uuid/hostname", s.change("endpoint.release", s.releaseHostname)},
		{http.MethodDelete, "/endpoints/:uuid/stored", s.change("stored.delete", s.removeStored)},
	}
}

// endpointPages returns a function that gives one page of endpoints after the
// other, in the order of their creation, as of now.
func (s *Service) endpointPages() func(ctx context.Context) ([]message.Endpoint, bool, error) {
	req := message.ListRequest{Limit: endpointPage}
	return func(ctx context.Context) ([]message.Endpoint, bool, error) {
		reply, err := ask[message.ListReply](ctx, s, message.RegistryList, req)
		if err != nil {
			return nil, false, err
		}
		req.After = reply.Next
		s.seen.overlay(reply.Endpoints)
		return reply.Endpoints, reply.Next != "", nil
	}
}

func (s *Service) listEndpoints(context.Context, *call) (result, error) {
	pages := s.endpointPages()
	return result{list: array(func(ctx context.Context) ([]byte, bool, error) {
		endpoints, more, err := pages(ctx)
		if err != nil {
			return nil, false, err
		}
		elements, err := joined(endpoints)
		return elements, more, err
	})}, nil
}

// joined encodes the elements of a list, joined by commas.
func joined[T any](list []T) ([]byte, error) {
	b, err := json.Marshal(list)
	if err != nil {
		return nil, fmt.Errorf("encode answer: %w", err)
	}
	return bytes.TrimSuffix(bytes.TrimPrefix(b, []byte{'['}), []byte{']'}), nil
}

func (s *Service) getEndpoint(ctx context.Context, q *call) (result, error) {
	e, err := s.endpoint(ctx, q.uuid())
	if err != nil {
		return result{}, err
	}
	return s.showEndpoint(ctx, e)
}

// endpoint returns an endpoint as the registry and this gateway know it.
func (s *Service) endpoint(ctx context.Context, uuid string) (message.Endpoint, error) {
	reply, err := s.registry(ctx, message.RegistryGet, uuid)
	if err != nil {
		return message.Endpoint{}, err
	}
	one := []message.Endpoint{reply.Endpoint}
	s.seen.overlay(one)
	return one[0], nil
}

// registry asks the registry about one endpoint. That it does not exist is
// said as clients know it.
func (s *Service) registry(ctx context.Context, subject, uuid string) (message.EndpointReply, error) {
	reply, err := ask[message.EndpointReply](ctx, s, subject, message.EndpointRequest{UUID: uuid})
	if fault.Is(err, fault.NotFound) {
		err = unknownEndpoint(uuid)
	}
	return reply, err
}

func unknownEndpoint(uuid string) error {
	return fault.New(fault.NotFound, "Unknown endpoint: %s", uuid)
}

// exists returns nil when an endpoint is known, to this gateway or, as it may
// be new, to the registry.
func (s *Service) exists(ctx context.Context, uuid string) error {
	if _, ok := s.credentials.get(uuid); ok {
		return nil
	}
	_, err := s.registry(ctx, message.RegistryGet, uuid)
	return err
}

// remembered returns nil when an endpoint is known or was deleted: what it sent
// stays readable.
func (s *Service) remembered(ctx context.Context, uuid string) error {
	err := s.exists(ctx, uuid)
	if !fault.Is(err, fault.NotFound) {
		return err
	}
	deleted, lookup := s.credentials.wasDeleted(uuid)
	switch {
	case lookup != nil:
		return lookup
	case deleted:
		return nil
	}
	return err
}

func (s *Service) createEndpoint(ctx context.Context, q *call) (result, error) {
	reply, err := ask[message.EndpointReply](ctx, s, message.RegistryCreate, message.EndpointRequest{})
	if err != nil {
		return result{}, err
	}
	q.target = reply.Endpoint.UUID
	return s.changed(reply, s.learned(ctx, reply.Revision))
}

func (s *Service) deleteEndpoint(ctx context.Context, q *call) (result, error) {
	before, err := s.endpoint(ctx, q.uuid())
	if err != nil {
		return result{}, err
	}
	reply, err := s.registry(ctx, message.RegistryDelete, q.uuid())
	if err != nil {
		return result{}, err
	}
	reply.Endpoint.LastConnection, reply.Endpoint.IP = before.LastConnection, before.IP
	failpoint.Hit(failpoint.EndpointBeforeForget)
	last := s.takeCommands(ctx, q.uuid())
	res, err := s.changed(reply, s.everywhere(ctx))
	if e, ok := res.data.(message.Endpoint); ok && err == nil {
		return s.endpointWith(ctx, e, last)
	}
	return res, err
}

func (s *Service) releaseHostname(ctx context.Context, q *call) (result, error) {
	reply, err := s.registry(ctx, message.RegistryRelease, q.uuid())
	if err != nil {
		return result{}, err
	}
	return s.changed(reply, s.everywhere(ctx))
}

// learned returns when this gateway acts by a change, that of a revision.
func (s *Service) learned(ctx context.Context, revision uint64) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return s.credentials.view.Wait(ctx, revision)
}

// everywhere returns when every gateway acts by a change that has been made.
func (s *Service) everywhere(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return s.peers.await(ctx)
}

// changed answers with an endpoint after a change. err is why this gateway
// does not act by it, if it does not.
func (s *Service) changed(reply message.EndpointReply, err error) (result, error) {
	if err != nil {
		return result{}, fault.New(fault.Unavailable, "the change is made, but this gateway has not learned of it yet: %v", err)
	}
	one := []message.Endpoint{reply.Endpoint}
	s.seen.overlay(one)
	return result{data: one[0]}, nil
}
