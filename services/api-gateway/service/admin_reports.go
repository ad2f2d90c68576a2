package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
)

func (s *Service) reportRoutes() []route {
	remove := s.change("report.delete", s.deleteReport)
	return []route{
		{http.MethodGet, "/endpoints/reports", s.read(s.listReports)},
		{http.MethodGet, "/endpoints/:uuid/report", s.read(s.getReport)},
		{http.MethodGet, "/endpoints/:uuid/reports", s.read(s.getReport)},
		{http.MethodDelete, "/endpoints/:uuid/report", remove},
		{http.MethodDelete, "/endpoints/:uuid/reports", remove},
	}
}

// listReports answers with the report of every endpoint, null where there is
// none.
func (s *Service) listReports(context.Context, *call) (result, error) {
	pages := s.endpointPages()
	return result{list: object(func(ctx context.Context) ([]byte, bool, error) {
		endpoints, more, err := pages(ctx)
		if err != nil {
			return nil, false, err
		}
		req := message.ReportsListRequest{UUIDs: make([]string, len(endpoints))}
		for i := range endpoints {
			req.UUIDs[i] = endpoints[i].UUID
		}
		reply, err := ask[message.ReportsListReply](ctx, s, message.ReportsList, req)
		if err != nil {
			return nil, false, err
		}
		var b bytes.Buffer
		for i, uuid := range req.UUIDs {
			report, err := json.Marshal(reply.Reports[uuid])
			if err != nil {
				return nil, false, fmt.Errorf("encode report: %w", err)
			}
			if i > 0 {
				b.WriteByte(',')
			}
			fmt.Fprintf(&b, "%q:", uuid)
			b.Write(report)
		}
		return b.Bytes(), more, nil
	})}, nil
}

func (s *Service) getReport(ctx context.Context, q *call) (result, error) {
	return s.report(ctx, q, message.ReportsGet)
}

// deleteReport answers with the report that is deleted.
func (s *Service) deleteReport(ctx context.Context, q *call) (result, error) {
	return s.report(ctx, q, message.ReportsClear)
}

func (s *Service) report(ctx context.Context, q *call, subject string) (result, error) {
	if err := s.remembered(ctx, q.uuid()); err != nil {
		return result{}, err
	}
	reply, err := ask[message.ReportReply](ctx, s, subject, message.ReportRequest{UUID: q.uuid()})
	if err != nil {
		return result{}, err
	}
	return result{data: reply.Report}, nil
}
