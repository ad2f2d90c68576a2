package scorer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/failpoint"
	"github.com/nightjar-edr/nightjar/pkg/view"
)

// maxReply bounds an answer in bytes, below what NATS carries.
const maxReply = stream.MaxMessage - 256<<10

// freshness is how long a clear waits to include alerts that other replicas
// may have shown already.
const freshness = 3 * time.Second

// unavailable marks failures that may pass as such; others stay as they are.
func unavailable(err error) error {
	var known *fault.Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	for _, passing := range []error{
		context.DeadlineExceeded, context.Canceled, badger.ErrDBClosed,
		nats.ErrTimeout, nats.ErrNoResponders, nats.ErrConnectionClosed, nats.ErrConnectionReconnecting, nats.ErrReconnectBufExceeded,
		jetstream.ErrNoStreamResponse, view.ErrGap, errStream,
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

func checkUUID(uuid string) error {
	if !subject.IsUUID(uuid) {
		return fault.New(fault.Invalid, "uuid %q is not of the form 8-4-4-4-12", uuid)
	}
	return nil
}

// current returns when every clear there is, and every removal up to a
// revision, is known.
func (s *Service) current(ctx context.Context, removed uint64) error {
	if err := s.removals.Obeyed(ctx, removed); err != nil {
		return unavailable(err)
	}
	return unavailable(s.clears.Sync(ctx))
}

func (s *Service) get(ctx context.Context, q message.ReportRequest) (message.ReportReply, error) {
	if err := checkUUID(q.UUID); err != nil {
		return message.ReportReply{}, err
	}
	if err := s.current(ctx, q.Removed); err != nil {
		return message.ReportReply{}, err
	}
	r, _, m, err := s.report(ctx, q.UUID)
	if err != nil {
		return message.ReportReply{}, unavailable(err)
	}
	return message.ReportReply{Report: r, Revision: m.Revision}, nil
}

// list answers with the reports that exist. An answer that would be too large
// for a message is refused as too large: the caller asks for fewer.
func (s *Service) list(ctx context.Context, data []byte) (*bus.Reply, error) {
	var q message.ReportsListRequest
	if err := json.Unmarshal(data, &q); err != nil {
		return nil, fault.New(fault.Invalid, "malformed request: %v", err)
	}
	if err := s.current(ctx, q.Removed); err != nil {
		return nil, err
	}
	reply := struct {
		Reports map[string]json.RawMessage `json:"reports"`
	}{map[string]json.RawMessage{}}
	size := 0
	for _, uuid := range q.UUIDs {
		if err := checkUUID(uuid); err != nil {
			return nil, err
		}
		if reply.Reports[uuid] != nil {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, unavailable(err)
		}
		r, _, _, err := s.report(ctx, uuid)
		if err != nil {
			return nil, unavailable(err)
		}
		if r == nil {
			continue
		}
		text, err := json.Marshal(r)
		if err != nil {
			return nil, fmt.Errorf("encode report of %s: %w", uuid, err)
		}
		if size += len(text) + uuidLength + len(`"":,`); size > maxReply {
			return nil, fault.New(fault.TooLarge, "the reports of %d endpoints are too large for one answer, ask for fewer", len(q.UUIDs))
		}
		reply.Reports[uuid] = text
	}
	out, err := json.Marshal(reply)
	if err != nil {
		return nil, fmt.Errorf("encode answer: %w", err)
	}
	return &bus.Reply{Data: out}, nil
}

// clear returns an endpoint's report and makes the alerts in it count no
// more. Alerts that this replica has not folded after freshness are not in
// the report, and are not cleared. When the answer gets lost, the report may
// have been cleared nevertheless; its alerts are in the log.
func (s *Service) clear(ctx context.Context, q message.ReportRequest) (message.ReportReply, error) {
	if err := checkUUID(q.UUID); err != nil {
		return message.ReportReply{}, err
	}
	if err := s.current(ctx, q.Removed); err != nil {
		return message.ReportReply{}, err
	}
	fresh, cancel := context.WithTimeout(ctx, freshness)
	defer cancel()
	if err := s.alerts.Sync(fresh); err != nil && (ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded)) {
		return message.ReportReply{}, unavailable(err)
	}
	for {
		if err := s.clears.Sync(ctx); err != nil {
			return message.ReportReply{}, unavailable(err)
		}
		r, last, m, err := s.report(ctx, q.UUID)
		if err != nil || r == nil {
			return message.ReportReply{Revision: m.Revision}, unavailable(err)
		}
		revision, err := s.writeMark(ctx, q.UUID, last, m.Revision)
		if overtaken(err) {
			continue
		}
		if err != nil {
			return message.ReportReply{}, unavailable(err)
		}
		s.metrics.cleared.Inc()
		return message.ReportReply{Report: r, Revision: revision}, nil
	}
}

// writeMark writes a clear over the one of a revision, 0 for none, and waits
// until the view holds it.
func (s *Service) writeMark(ctx context.Context, uuid string, cleared, revision uint64) (uint64, error) {
	data, err := json.Marshal(message.ReportRecord{Cleared: cleared, Time: time.Now().UTC()})
	if err != nil {
		return 0, fmt.Errorf("encode clear of %s: %w", uuid, err)
	}
	var written uint64
	failpoint.Hit(failpoint.ClearBeforeWrite)
	if revision == 0 {
		written, err = s.kv.Create(ctx, uuid, data)
	} else {
		written, err = s.kv.Update(ctx, uuid, data, revision)
	}
	if err != nil {
		return 0, fmt.Errorf("write clear of %s: %w", uuid, err)
	}
	failpoint.Hit(failpoint.ClearAfterWrite)
	return written, s.clears.Wait(ctx, written)
}
