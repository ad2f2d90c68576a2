package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
)

const (
	// defaultRange is asked for when no bounds are given, defaultDelta
	// around a pivot without a delta.
	defaultRange = time.Hour
	defaultDelta = 10 * time.Minute
	// A page of events that cannot be had is asked for so often, so far
	// apart, before the answer is given up.
	logAttempts = 3
	logPause    = 300 * time.Millisecond
	// firstPage is how many events the first page of an unbounded query
	// holds: few, for it is what the client waits for.
	firstPage = 256
)

func (s *Service) logRoutes() []route {
	return []route{
		{http.MethodGet, "/endpoints/:uuid/logs", s.read(func(ctx context.Context, q *call) (result, error) { return s.queryLogs(ctx, q, false) })},
		{http.MethodGet, "/endpoints/:uuid/alerts", s.read(func(ctx context.Context, q *call) (result, error) { return s.queryLogs(ctx, q, true) })},
	}
}

// span is a range of time without its bounds. A zero start is open.
type span struct{ start, stop time.Time }

// empty tells whether nothing can lie within the span.
func (r span) empty() bool { return !r.start.Before(r.stop) }

// latest is the last moment that RFC 3339 can express. The first is the zero
// time, at which a bound is open, as nothing can lie before it.
var latest = time.Date(9999, time.December, 31, 23, 59, 59, 999_999_999, time.UTC)

// bounded keeps a span within what can be expressed.
func (r span) bounded() span {
	if r.start.Before(time.Time{}) {
		r.start = time.Time{}
	}
	if r.stop.After(latest) {
		r.stop = latest
	}
	return r
}

// parseSpan reads the parameters start, stop, pivot and delta.
func parseSpan(q *call, now time.Time) (span, error) {
	var start, stop, pivot time.Time
	given := map[string]bool{}
	for _, p := range []struct {
		name string
		into *time.Time
	}{{"start", &start}, {"stop", &stop}, {"pivot", &pivot}} {
		if v := q.query.Get(p.name); v != "" {
			given[p.name] = true
			t, err := time.Parse(time.RFC3339, v)
			if err != nil {
				return span{}, fault.New(fault.Invalid, "Failed to parse %s parameter, it must be RFC3339 formated", p.name)
			}
			*p.into = t
		}
	}
	delta, around := defaultDelta, q.query.Get("delta")
	if around != "" {
		var err error
		if delta, err = time.ParseDuration(around); err != nil {
			return span{}, fault.New(fault.Invalid, "Failed to parse delta parameter, it must be a valid Go time.Duration format")
		}
	}
	bounded, pivoted := given["start"] || given["stop"], given["pivot"] || around != ""
	if !given["stop"] {
		stop = now
	}
	if !given["pivot"] {
		pivot = now
	}
	switch {
	case bounded && start.After(stop):
		return span{}, fault.New(fault.Invalid, "Start date must be before stop date")
	case bounded && pivoted:
		return span{}, fault.New(fault.Invalid, "Incompatible parameters, specify either start/stop or pivot/delta parameters")
	case bounded:
		return span{start, stop}.bounded(), nil
	case pivoted:
		return span{pivot.Add(-delta), pivot.Add(delta)}.bounded(), nil
	}
	return span{now.Add(-defaultRange), now}, nil
}

// queryLogs answers with an endpoint's events or alerts in the order of time.
func (s *Service) queryLogs(ctx context.Context, q *call, alerts bool) (result, error) {
	if err := s.remembered(ctx, q.uuid()); err != nil {
		return result{}, err
	}
	within, err := parseSpan(q, time.Now())
	if err != nil {
		return result{}, err
	}
	limit, err := q.number("limit", -1)
	if err != nil {
		return result{}, err
	}
	skip, err := q.number("skip", 0)
	if err != nil {
		return result{}, err
	}
	if within.empty() || limit == 0 {
		return result{data: []struct{}{}}, nil
	}
	req := message.LogsRequest{Endpoint: q.uuid(), Alerts: alerts, Start: within.start, Stop: within.stop, Skip: skip, Limit: max(limit, 0), Paged: true, Removed: s.removed()}
	if limit < 0 {
		req.Limit = firstPage
	}
	on := subject.Logs(subject.PartitionOf(req.Endpoint), message.LogsQuery)
	// A page is asked for when the one before the last has been written.
	var last, before []byte
	return result{list: array(func(ctx context.Context) ([]byte, bool, error) {
		lines, next, err := s.logPage(ctx, on, req, before)
		if err != nil {
			return nil, false, err
		}
		last, before = lines, last
		count := bytes.Count(lines, []byte{'\n'})
		req.Cursor, req.Skip = next, 0
		if limit > 0 {
			req.Limit -= count
			if req.Limit < 0 {
				return nil, false, fault.New(fault.Internal, "more events than were asked for")
			}
		} else {
			req.Limit = 0
		}
		// What an endpoint sent is stored as it is; an answer in JSON is UTF-8
		// (RFC 8259), so bytes that are none are shown as U+FFFD.
		if !utf8.Valid(lines) {
			lines = bytes.ToValidUTF8(lines, []byte("\uFFFD"))
		}
		return commas(lines), next != "" && (limit < 0 || req.Limit > 0), nil
	})}, nil
}

// logPage asks for one page: lines, each ended by a newline, and the cursor
// of the next page, in the memory of buf if they fit. As asking changes nothing,
// it is repeated when the service does not answer.
func (s *Service) logPage(ctx context.Context, on string, req message.LogsRequest, buf []byte) (lines []byte, next string, err error) {
	data, err := json.Marshal(req)
	if err != nil {
		return nil, "", fmt.Errorf("encode request: %w", err)
	}
	for attempt := 1; ; attempt++ {
		asking, cancel := context.WithTimeout(ctx, requestTimeout)
		m, err := s.cfg.Bus.Request(asking, on, data)
		cancel()
		if err == nil {
			if m.Header.Get(message.HeaderFormat) == message.FormatPage {
				lines, err = message.OpenPage(buf, m.Data)
			} else {
				lines, err = message.Decompress(buf[:0], m.Data)
			}
			if err != nil {
				return nil, "", fmt.Errorf("page of events: %w", err)
			}
			return lines, m.Header.Get(message.HeaderNext), nil
		}
		if attempt == logAttempts || !fault.Is(err, fault.Unavailable) || ctx.Err() != nil {
			if errors.Is(err, nats.ErrNoResponders) {
				err = fault.New(fault.Unavailable, "no replica of log-ingest answers for partition %d at the moment, try again later", subject.PartitionOf(req.Endpoint))
			}
			return nil, "", err
		}
		select {
		case <-ctx.Done():
		case <-time.After(logPause):
		}
	}
}

// commas joins lines that are each ended by a newline by commas, in place.
func commas(lines []byte) []byte {
	lines = bytes.TrimSuffix(lines, []byte{'\n'})
	for i := 0; ; {
		n := bytes.IndexByte(lines[i:], '\n')
		if n < 0 {
			return lines
		}
		lines[i+n] = ','
		i += n + 1
	}
}
