package registry

import (
	"context"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
)

// maxKey bounds a key in bytes.
const maxKey = 1024

// seen merges contacts into the record of each partition that they touch. Of
// two contacts of an endpoint the newer one stays. Endpoints that do not
// exist are passed over. A time in the future counts as now, so that one
// clock that is wrong does not hide the contacts that follow.
func (s *Service) seen(ctx context.Context, q message.SeenRequest) (message.RevisionReply, error) {
	now := time.Now().UTC()
	touched := map[int]map[string]message.Seen{}
	for uuid, at := range q.Seen {
		at.Time = at.Time.UTC()
		if at.Time.After(now) {
			at.Time = now
		}
		p := subject.PartitionOf(uuid)
		if touched[p] == nil {
			touched[p] = map[string]message.Seen{}
		}
		touched[p][uuid] = at
	}
	var reply message.RevisionReply
	var mu sync.Mutex
	err := s.attempt(ctx, func() error {
		var writes errgroup.Group // side by side, so that the views fold them together
		for p, contacts := range touched {
			writes.Go(func() error {
				merged, changed := s.index.merge(p, contacts)
				if !changed {
					return nil
				}
				revision, err := s.update(ctx, message.SeenKeyPrefix+strconv.Itoa(p), merged.Seen, merged.Revision)
				mu.Lock()
				defer mu.Unlock()
				reply.Revision = max(reply.Revision, revision)
				return err
			})
		}
		return writes.Wait()
	})
	if err != nil {
		return message.RevisionReply{}, err
	}
	if reply.Revision == 0 {
		reply.Revision = s.view.Position()
	}
	return reply, nil
}

// importAll adds endpoints with the uuid, key and hostname they have, created
// now in the order of the request. All are checked before the first is
// written. They are written in that order one after the other, so a request
// that ends early can be repeated and goes on where it ended.
func (s *Service) importAll(ctx context.Context, q message.ImportRequest) (message.RevisionReply, error) {
	if err := checkImport(q.Endpoints); err != nil {
		return message.RevisionReply{}, err
	}
	var reply message.RevisionReply
	err := s.attempt(ctx, func() error {
		missing, err := s.missing(q.Endpoints)
		if err != nil {
			return err
		}
		for _, r := range missing {
			r.Created = s.index.nextCreated(time.Now().UTC())
			if reply.Revision, err = s.update(ctx, r.UUID, r, 0); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return message.RevisionReply{}, err
	}
	if reply.Revision == 0 {
		reply.Revision = s.view.Position()
	}
	return reply, nil
}

// checkImport tells whether endpoints can be imported together.
func checkImport(records []message.EndpointRecord) error {
	keys := make(map[string]string, len(records))
	for _, r := range records {
		switch known, again := keys[r.UUID]; {
		case !subject.IsUUID(r.UUID):
			return fault.New(fault.Invalid, "uuid %q is not of the form 8-4-4-4-12", r.UUID)
		case r.Key == "" || len(r.Key) > maxKey:
			return fault.New(fault.Invalid, "endpoint %s: the key must have 1 to %d bytes", r.UUID, maxKey)
		case len(r.Hostname) > maxHostname:
			return fault.New(fault.Invalid, "endpoint %s: hostname longer than %d bytes", r.UUID, maxHostname)
		case again && known != r.Key:
			return otherKey(r.UUID)
		}
		keys[r.UUID] = r.Key
	}
	return nil
}

// missing returns the endpoints that do not exist yet, each once.
func (s *Service) missing(records []message.EndpointRecord) ([]message.EndpointRecord, error) {
	var missing []message.EndpointRecord
	listed := map[string]bool{}
	for _, r := range records {
		switch e, _, ok := s.index.get(r.UUID); {
		case ok && e.Record.Key != r.Key:
			return nil, otherKey(r.UUID)
		case !ok && !listed[r.UUID]:
			listed[r.UUID] = true
			missing = append(missing, r)
		}
	}
	return missing, nil
}

func otherKey(uuid string) error {
	return fault.New(fault.Conflict, "endpoint %s exists with another key", uuid)
}
