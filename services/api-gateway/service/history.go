package gateway

import (
	"context"
	"net/http"

	"golang.org/x/sync/semaphore"
)

// maxHistoryUploads bounds how many artifacts are imported at once, apart from
// the uploads of agents.
const maxHistoryUploads = 4

// historyRoutes take in what endpoints had sent to another manager. Events and
// files go the way that those of agents go and are told apart from nothing;
// but nobody takes the import for a sign of life: an endpoint's hostname, ip
// and last-connection stay as they are.
//
// Refusals of a body have a status of their own, as on the agent API: 503
// with Retry-After when it cannot be stored now.
func (s *Service) historyRoutes() []route {
	d := &artifactDesk{svc: s, slots: semaphore.NewWeighted(maxHistoryUploads)}
	return []route{
		{http.MethodPost, "/endpoints/:uuid/logs", s.change("history.events", s.importEvents)},
		{http.MethodPost, "/endpoints/:uuid/artifacts", s.change("history.artifact", d.importFile)},
	}
}

// importEvents stores the lines of a body as events of an endpoint.
func (s *Service) importEvents(ctx context.Context, q *call) (result, error) {
	if err := s.exists(ctx, q.uuid()); err != nil {
		return result{}, err
	}
	zip, err := zipped(q.http)
	if err == nil {
		cred, _ := s.credentials.get(q.uuid())
		err = s.ingest.receive(ctx, sender{uuid: q.uuid(), hostname: cred.Hostname}, q.http.Body, zip)
	}
	if err != nil {
		return result{}, &bodyError{err}
	}
	return result{}, nil
}

// importFile stores a file, or a part of one, as an artifact of an endpoint.
func (d *artifactDesk) importFile(ctx context.Context, q *call) (result, error) {
	if err := d.svc.exists(ctx, q.uuid()); err != nil {
		return result{}, err
	}
	if err := d.take(q.http, q.uuid()); err != nil {
		return result{}, &bodyError{err}
	}
	return result{}, nil
}
