package ingest

import (
	"context"
	"encoding/json"
	"strconv"

	"github.com/nats-io/nats.go"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/services/log-ingest/internal/logstore"
)

// query answers message.LogsQuery.
func (s *Service) query(ctx context.Context, data []byte) (*bus.Reply, error) {
	var req message.LogsRequest
	if err := json.Unmarshal(data, &req); err != nil {
		return nil, fault.New(fault.Invalid, "malformed request: %v", err)
	}
	q, err := s.parse(&req)
	if err != nil {
		return nil, err
	}
	if err := s.obeyed(ctx, req.Removed); err != nil {
		return nil, err
	}
	page, err := s.reader.Page(ctx, q)
	if partition := subject.PartitionOf(req.Endpoint); !s.holding.answers(partition) {
		return nil, notAnswered(partition) // it may have been dropped meanwhile
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil, fault.New(fault.Unavailable, "the query took too long")
		}
		return nil, err
	}
	h := nats.Header{}
	h.Set(message.HeaderCount, strconv.Itoa(page.Count))
	data = page.Packed
	if data != nil {
		h.Set(message.HeaderFormat, message.FormatPage)
	} else {
		data = message.Compress(nil, page.Lines)
	}
	if page.More {
		h.Set(message.HeaderNext, page.Last.Cursor())
	}
	s.metrics.answeredLines.Add(float64(page.Count))
	s.metrics.answeredBytes.Add(float64(page.Size))
	return &bus.Reply{Data: data, Header: h}, nil
}

// notAnswered is the answer to a request for a partition that this replica has
// just stopped to answer for.
func notAnswered(partition int) error {
	return fault.New(fault.Unavailable, "partition %d has moved to another replica", partition)
}

func (s *Service) parse(req *message.LogsRequest) (logstore.Query, error) {
	q := logstore.Query{Endpoint: req.Endpoint, Kind: logstore.Events, Skip: req.Skip, Limit: req.Limit, Detections: !req.Alerts, Packed: req.Paged}
	switch {
	case !subject.IsUUID(req.Endpoint):
		return q, fault.New(fault.Invalid, "endpoint is not a UUID")
	case !s.holding.answers(subject.PartitionOf(req.Endpoint)):
		return q, notAnswered(subject.PartitionOf(req.Endpoint))
	case req.Skip < 0 || req.Limit < 0:
		return q, fault.New(fault.Invalid, "skip and limit must not be negative")
	}
	if req.Alerts {
		q.Kind = logstore.Alerts
	}
	q.Between(req.Start, req.Stop)
	if req.Cursor != "" {
		after, err := logstore.ParseCursor(req.Cursor)
		if err != nil {
			return q, fault.New(fault.Invalid, "%v", err)
		}
		if after.Compare(q.After) > 0 {
			q.After = after
		}
	}
	return q, nil
}
