package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
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
	pages, more := s.endpointPages(), true
	var left []string // of the page of endpoints
	atOnce := endpointPage
	return result{list: object(func(ctx context.Context) ([]byte, bool, error) {
		if len(left) == 0 {
			var endpoints []message.Endpoint
			var err error
			if endpoints, more, err = pages(ctx); err != nil {
				return nil, false, err
			}
			for i := range endpoints {
				left = append(left, endpoints[i].UUID)
			}
		}
		reports, n, err := s.someReports(ctx, left[:min(atOnce, len(left))])
		if err != nil {
			return nil, false, err
		}
		b, err := reportMembers(left[:n], reports)
		if n < min(atOnce, len(left)) {
			atOnce = n
		} else {
			atOnce = min(2*atOnce, endpointPage)
		}
		left = left[n:]
		return b, more || len(left) > 0, err
	})}, nil
}

// someReports asks for the reports of endpoints, or, where they are too large
// for one answer, of as many of the first ones as one answer carries. It
// returns of how many.
func (s *Service) someReports(ctx context.Context, uuids []string) (map[string]*message.Report, int, error) {
	for n := len(uuids); ; n /= 2 {
		reply, err := ask[message.ReportsListReply](ctx, s, message.ReportsList, message.ReportsListRequest{UUIDs: uuids[:n], Removed: s.removed()})
		if n < 2 || !fault.Is(err, fault.TooLarge) {
			return reply.Reports, n, err
		}
	}
}

// reportMembers encodes the reports of endpoints as members of an object.
func reportMembers(uuids []string, reports map[string]*message.Report) ([]byte, error) {
	var b bytes.Buffer
	for i, uuid := range uuids {
		report, err := json.Marshal(reports[uuid])
		if err != nil {
			return nil, fmt.Errorf("encode report: %w", err)
		}
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%q:", uuid)
		b.Write(report)
	}
	return b.Bytes(), nil
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
	reply, err := ask[message.ReportReply](ctx, s, subject, message.ReportRequest{UUID: q.uuid(), Removed: s.removed()})
	if err != nil {
		return result{}, err
	}
	return result{data: reply.Report}, nil
}
