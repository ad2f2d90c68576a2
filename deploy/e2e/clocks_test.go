package e2e

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"testing"
	"time"
)

// clockEvent makes an event that says at as its time, whatever that is.
func clockEvent(n int, at string) []byte {
	return fmt.Appendf(nil, `{"Event":{"EventData":{"N":"%d"},"System":{"Channel":"Security","EventID":"1","TimeCreated":{"SystemTime":"%s"}}}}`, n, at)
}

// found returns the numbers of the events that a query shows, sorted.
func (p *proc) found(e endpoint, query string) (list []string) {
	p.t.Helper()
	for _, raw := range p.events(e, "logs"+query) {
		var ev struct {
			Event struct{ EventData struct{ N string } }
		}
		if err := json.Unmarshal(raw, &ev); err != nil {
			p.t.Fatal(err)
		}
		list = append(list, ev.Event.EventData.N)
	}
	slices.Sort(list)
	return list
}

// span is the range of times between start and stop, without both.
func span(start, stop time.Time) string {
	return "?" + url.Values{"start": {start.Format(time.RFC3339Nano)}, "stop": {stop.Format(time.RFC3339Nano)}}.Encode()
}

// TestClocksOfEndpoints has the clock of an endpoint jump back and forth over
// thousands of years. Every event is found in the range that its time lies in,
// once, and none hides those of another hour or another endpoint, also when
// the manager has been started anew.
func TestClocksOfEndpoints(t *testing.T) {
	p := start(t, t.TempDir())
	wild, calm := p.enrol(), p.enrol()
	now := time.Now().UTC()
	times := []string{
		"0001-01-01T00:00:01Z", "9999-12-31T23:59:58Z", "1969-12-31T23:59:59.999999999Z", "1970-01-01T00:00:00Z",
		"2024-02-29T23:59:59Z", "2038-01-19T03:14:08Z", "2262-04-11T23:47:17Z", "1677-09-21T00:12:43Z", "2106-02-07T06:28:16Z",
		"0999-06-01T12:00:00Z", "2000-01-01T00:00:00+14:00",
		now.Add(-time.Hour).Format(time.RFC3339Nano), now.Add(10 * 365 * 24 * time.Hour).Format(time.RFC3339Nano), now.Format(time.RFC3339Nano),
	}
	// These say no time that exists, or the zero time, which is what a clock
	// that was never set says: they stand at their receipt.
	unusable := []string{"", "0001-01-01T00:00:00Z", "2023-02-29T00:00:00Z", "2016-12-31T23:59:60Z", "10000-01-01T00:00:00Z", "yesterday", "-0001-01-01T00:00:00Z"}
	began := time.Now().Add(-time.Second)
	n := 0
	send := func(at string) { p.mustPost(wild, clockEvent(n, at)); n++ }
	for i, at := range times { // each in a body of its own, among calm ones
		send(at)
		p.mustPost(calm, clockEvent(i, now.Add(time.Duration(i-20)*time.Minute).Format(time.RFC3339Nano)))
	}
	for _, at := range unusable {
		send(at)
	}
	p.mustPost(wild, []byte(`{"Event":{"EventData":{"N":"none"}}}`))
	received := time.Now().Add(time.Second)
	check := func() {
		t.Helper()
		eventually(t, "all events", func() error {
			if got := p.found(wild, everything); len(got) != n+1 || len(slices.Compact(slices.Clone(got))) != n+1 {
				return fmt.Errorf("%d events, want %d: %v", len(got), n+1, got)
			}
			if got := p.found(calm, everything); len(got) != len(times) {
				return fmt.Errorf("%d events of the other endpoint", len(got))
			}
			return nil
		})
		for i, at := range times {
			when, err := time.Parse(time.RFC3339Nano, at)
			if err != nil {
				t.Fatal(err)
			}
			got := p.found(wild, span(when.Add(-time.Nanosecond), when.Add(time.Nanosecond)))
			if want := fmt.Sprint(i); !slices.Contains(got, want) || (len(got) != 1 && (when.Before(began) || when.After(received))) {
				t.Errorf("at %s: events %v, want %s", at, got, want)
			}
			minute := now.Add(time.Duration(i-20) * time.Minute)
			if got := p.found(calm, span(minute.Add(-time.Second), minute.Add(time.Second))); len(got) != 1 || got[0] != fmt.Sprint(i) {
				t.Errorf("minute %d of the other endpoint: events %v", i, got)
			}
		}
		got := p.found(wild, span(began, received))
		for i := range unusable {
			if want := fmt.Sprint(len(times) + i); !slices.Contains(got, want) {
				t.Errorf("time %q: not among those of its receipt %v", unusable[i], got)
			}
		}
		if !slices.Contains(got, "none") {
			t.Errorf("no time: not among those of its receipt %v", got)
		}
		if got := p.found(wild, "?stop=1961-01-01T00:00:00Z"); !slices.Equal(got, []string{"0", "7", "9"}) {
			t.Errorf("until 1961: events %v", got)
		}
	}
	check()
	p.kill()
	p.run()
	check()
}
