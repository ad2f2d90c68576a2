package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
)

// ok is the envelope around data.
func ok(data string) string { return `{"data":` + data + `,"message":"OK","error":""}` }

// said is the envelope of an action.
func said(message string) string { return `{"data":null,"message":"` + message + `","error":""}` }

// nok is the envelope of an error.
func nok(text string) string {
	quoted, err := json.Marshal(text)
	if err != nil {
		panic(err)
	}
	return `{"data":null,"message":"NOK","error":` + string(quoted) + `}`
}

func (r *rig) expect(method, path, body, want string) {
	r.t.Helper()
	if a := r.admin(method, path, body); a.code != 200 || a.body != want || a.err != nil || a.header.Get("Content-Type") != contentJSON {
		r.t.Errorf("%s %s: %d %s (%v)\nwant %s", method, path, a.code, a.body, a.err, want)
	}
}

func TestAudit(t *testing.T) {
	r := newRig(t, nil)
	r.handle(message.RulesDelete, bus.JSON(func(_ context.Context, q message.RulesDeleteRequest) (message.RulesChangeReply, error) {
		if q.Actor != "admin" {
			return message.RulesChangeReply{}, fmt.Errorf("actor %q", q.Actor)
		}
		return message.RulesChangeReply{}, fault.New(fault.NotFound, "No such rule %q, doing nothing", q.Name)
	}))
	e := r.endpoint()
	r.admin("GET", "/endpoints", "")
	r.admin("DELETE", "/endpoints/"+someUUID, "")
	r.expect("DELETE", "/rules?name=Nope", "", nok(`No such rule "Nope", doing nothing`))
	want := []message.Audit{
		{Action: "endpoint.create", Target: e.UUID, Outcome: "ok"},
		{Action: "endpoint.delete", Target: someUUID, Outcome: "Unknown endpoint: " + someUUID},
		{Action: "rules.delete", Target: "Nope", Outcome: `No such rule "Nope", doing nothing`},
	}
	records := r.messages(stream.Audit)
	if len(records) != len(want) {
		t.Fatalf("%d records, want %d", len(records), len(want))
	}
	for i, m := range records {
		var a message.Audit
		if err := json.Unmarshal(m.Data, &a); err != nil {
			t.Fatal(err)
		}
		if m.Subject != "edr.audit.admin" || a.Operator != "admin" || a.Remote != "127.0.0.1" || time.Since(a.Time) > time.Minute {
			t.Errorf("%s %+v", m.Subject, a)
		}
		if a.Action != want[i].Action || a.Target != want[i].Target || a.Outcome != want[i].Outcome {
			t.Errorf("record %d is %+v, want %+v", i, a, want[i])
		}
		if strings.Contains(string(m.Data), e.Key) {
			t.Error("the endpoint's key is on record")
		}
	}
}

func TestRules(t *testing.T) {
	r := newRig(t, nil)
	var mu sync.Mutex
	var added message.RulesAddRequest
	staged := false
	r.handle(message.RulesAdd, bus.JSON(func(_ context.Context, q message.RulesAddRequest) (message.RulesChangeReply, error) {
		mu.Lock()
		defer mu.Unlock()
		added = q
		return message.RulesChangeReply{Staged: staged, Revision: r.rules.set(t, "{\"Name\":\"two, v1\"}\n", "{\"Name\":\"two, v2\"}\n")}, nil
	}))
	r.handle(message.RulesList, bus.JSON(func(_ context.Context, q message.RulesListRequest) (message.RulesListReply, error) {
		if q.Name == "[" {
			return message.RulesListReply{}, fault.New(fault.Invalid, "bad regexp")
		}
		switch q.After {
		case "":
			return message.RulesListReply{Rules: []json.RawMessage{[]byte(`{"Name":"a","Matches":["$x: A >= '5'"]}`), []byte(`{"Name":"b"}`)}, Next: "b"}, nil
		case "b":
			return message.RulesListReply{Next: "c"}, nil
		}
		return message.RulesListReply{Rules: []json.RawMessage{[]byte(`{"Name":"d"}`)}}, nil
	}))
	r.handle(message.RulesDelete, bus.JSON(func(context.Context, message.RulesDeleteRequest) (message.RulesChangeReply, error) {
		return message.RulesChangeReply{Staged: true}, nil
	}))
	r.handle(message.RulesSave, bus.JSON(func(context.Context, struct{}) (message.RulesChangeReply, error) {
		return message.RulesChangeReply{}, nil
	}))
	r.handle(message.RulesReload, count(7))
	r.handle(message.RulesCount, count(7))
	e := r.endpoint()

	r.expect("GET", "/rules", "", ok(`[{"Name":"a","Matches":["$x: A \u003e= '5'"]},{"Name":"b"},{"Name":"d"}]`))
	r.expect("GET", "/rules?name=%5B", "", nok("bad regexp"))
	r.expect("DELETE", "/rules?name=a", "", said("Rules updated succesfully, engine needs to be reloaded"))
	r.expect("GET", "/rules/save", "", said("Rules saved succesfully on disk"))
	r.expect("GET", "/rules/reload", "", ok(`{"endpoint-count":1,"rule-count":7}`))
	for _, bad := range []string{"banana", "yes", "", "2"} {
		r.expect("POST", "/rules?update="+bad, "{}", nok("Failed to parse update parameter, it must be a boolean"))
	}

	const body = `{"Name":"two"}`
	check := func(t *testing.T, update bool) {
		t.Helper()
		mu.Lock()
		defer mu.Unlock()
		text, err := message.Decompress(nil, added.Body)
		if err != nil || string(text) != body || added.Update != update || added.Actor != "admin" {
			t.Errorf("the rule-engine got %q, %v, %+v", text, err, added)
		}
	}
	if a := r.agent(e, "GET", "/rules", nil); a.body != "{\"Name\":\"one, v1\"}\n" {
		t.Errorf("rules %q", a.body)
	}
	r.expect("POST", "/rules", body, said("Rules added successfully, please save rules for persistence"))
	check(t, false)
	// Who has added a rule sees agents get it at once.
	modern := map[string]string{"X-Endpoint-Uuid": e.UUID, "X-Api-Key": e.Key, "X-Endpoint-Hostname": "WS-03e3"}
	for _, get := range []func(path string) string{
		func(path string) string { return r.agent(e, "GET", path, nil).body },
		func(path string) string { return r.do("GET", r.svc.AgentAddr(), path, nil, modern).body },
	} {
		text := get("/rules")
		if !strings.HasPrefix(text, `{"Name":"two, v`) {
			t.Errorf("agents get %q", text)
		}
		if sum := get("/rules/sha256"); sum != sha(text) {
			t.Errorf("sha256 %s of %q", sum, text)
		}
	}
	mu.Lock()
	staged = true
	mu.Unlock()
	r.expect("POST", "/rules?update=t", body, said("Rules updated succesfully, engine needs to be reloaded"))
	check(t, true)

	post := func(body string, h map[string]string) answer {
		h["Api-Key"] = adminKey
		return r.do("POST", r.svc.AdminAddr(), "/rules", strings.NewReader(body), h)
	}
	if a := post(string(gz(t, body)), map[string]string{asGzip: "gzip"}); a.code != 200 || !strings.Contains(a.body, "Rules updated") {
		t.Errorf("gzip: %d %s", a.code, a.body)
	}
	check(t, false)
	if a := post("xx", map[string]string{asGzip: "gzip"}); a.code != 500 || a.body != "Cannot create gzip reader\n" {
		t.Errorf("not gzip: %d %s", a.code, a.body)
	}
	if a := post(string(gz(t, strings.Repeat(" ", maxRules+1))), map[string]string{asGzip: "gzip"}); a.code != 413 {
		t.Errorf("bomb: %d %s", a.code, a.body)
	}
}

func TestRulesAreServedFromMemory(t *testing.T) {
	r := newRig(t, nil)
	e := r.endpoint()
	get := func() string { return r.agent(e, "GET", "/rules", nil).body }
	eventually(t, "the rules are there", func() bool { return get() == "{\"Name\":\"one, v1\"}\n" })
	// Who asks while the rules are fetched has them fetched once, in two parts
	// of each form.
	r.rules.mu.Lock()
	fetched := r.rules.fetched
	r.restart()
	var first sync.WaitGroup
	first.Go(func() { get() })
	eventually(t, "somebody waits", func() bool { return len(r.svc.rules.wake) == 1 })
	r.rules.mu.Unlock()
	first.Wait()
	for range 50 {
		get()
	}
	r.rules.mu.Lock()
	if n := r.rules.fetched - fetched; n != 4 {
		t.Errorf("polls made %d requests, want 4", n)
	}
	r.rules.mu.Unlock()
	// A change by another gateway is noticed without a request.
	r.rules.set(t, "changed elsewhere\n", "")
	eventually(t, "the change is noticed", func() bool { return get() == "changed elsewhere\n" })
}

func TestReports(t *testing.T) {
	r := newRig(t, nil)
	var mu sync.Mutex
	reports := map[string]*message.Report{}
	// most is how many reports an answer carries.
	var most atomic.Int64
	most.Store(1000)
	get := func(_ context.Context, q message.ReportRequest) (message.ReportReply, error) {
		mu.Lock()
		defer mu.Unlock()
		return message.ReportReply{Report: reports[q.UUID]}, nil
	}
	r.handle(message.ReportsGet, bus.JSON(get))
	r.handle(message.ReportsClear, bus.JSON(func(ctx context.Context, q message.ReportRequest) (message.ReportReply, error) {
		reply, err := get(ctx, q)
		mu.Lock()
		defer mu.Unlock()
		delete(reports, q.UUID)
		return reply, err
	}))
	r.handle(message.ReportsList, bus.JSON(func(_ context.Context, q message.ReportsListRequest) (message.ReportsListReply, error) {
		mu.Lock()
		defer mu.Unlock()
		if len(q.UUIDs) > r.registry.page {
			return message.ReportsListReply{}, errors.New("more than a page at once")
		}
		if len(q.UUIDs) > int(most.Load()) {
			return message.ReportsListReply{}, fault.New(fault.TooLarge, "ask for fewer")
		}
		reply := message.ReportsListReply{Reports: map[string]*message.Report{}}
		for _, uuid := range q.UUIDs {
			if rep := reports[uuid]; rep != nil {
				reply.Reports[uuid] = rep
			}
		}
		return reply, nil
	}))
	r.expect("GET", "/endpoints/reports", "", ok("{}"))
	var uuids []string
	for range 3 {
		uuids = append(uuids, r.endpoint().UUID)
	}
	mu.Lock()
	reports[uuids[1]] = &message.Report{Identifier: uuids[1], AlertCount: 2, Signatures: []string{"<x>"}}
	text, err := json.Marshal(reports[uuids[1]])
	mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	r.expect("GET", "/endpoints/"+uuids[0]+"/report", "", ok("null"))
	r.expect("GET", "/endpoints/"+uuids[1]+"/report", "", ok(string(text)))
	r.expect("GET", "/endpoints/"+uuids[1]+"/reports", "", ok(string(text)))
	r.expect("GET", "/endpoints/reports", "", ok(fmt.Sprintf(`{"%s":null,"%s":%s,"%s":null}`, uuids[0], uuids[1], text, uuids[2])))
	for _, carried := range []int{1, 2, 5} {
		t.Run(fmt.Sprintf("%d in an answer", carried), func(t *testing.T) {
			most.Store(int64(carried))
			r.expect("GET", "/endpoints/reports", "", ok(fmt.Sprintf(`{"%s":null,"%s":%s,"%s":null}`, uuids[0], uuids[1], text, uuids[2])))
		})
	}
	most.Store(0)
	r.expect("GET", "/endpoints/reports", "", nok("ask for fewer"))
	r.expect("DELETE", "/endpoints/"+uuids[1]+"/reports", "", ok(string(text)))
	r.expect("GET", "/endpoints/"+uuids[1]+"/report", "", ok("null"))
	r.expect("DELETE", "/endpoints/"+someUUID+"/report", "", nok("Unknown endpoint: "+someUUID))
}

func TestLogsQuery(t *testing.T) {
	r := newRig(t, nil)
	e := r.endpoint()
	h, asked := pages([]string{`{"n":1}`, `{ "n": 2.0 }`}, []string{}, []string{`{"<&>":3}`})
	r.handle(subject.Logs(subject.PartitionOf(e.UUID), message.LogsQuery), h)
	path := "/endpoints/" + e.UUID
	before := time.Now()
	r.expect("GET", path+"/logs", "", ok(`[{"n":1},{ "n": 2.0 },{"<&>":3}]`))
	if q := (*asked)[0]; q.Alerts || q.Endpoint != e.UUID || q.Stop.Sub(q.Start) != time.Hour || q.Stop.Before(before) || q.Stop.After(time.Now()) {
		t.Errorf("asked %+v", q)
	}
	*asked = nil
	r.expect("GET", path+"/alerts?skip=4&limit=2", "", ok(`[{"n":1},{ "n": 2.0 }]`))
	if q := (*asked)[0]; !q.Alerts || q.Skip != 4 || q.Limit != 2 {
		t.Errorf("asked %+v", q)
	}
	*asked = nil
	r.expect("GET", path+"/logs?skip=4&limit=3", "", ok(`[{"n":1},{ "n": 2.0 },{"<&>":3}]`))
	if q := (*asked)[1:]; len(q) != 2 || q[0].Skip != 0 || q[0].Limit != 1 || q[0].Cursor != "x" || !q[0].Start.Equal((*asked)[0].Start) {
		t.Errorf("asked for the next pages: %+v", q)
	}
	*asked = nil
	r.expect("GET", path+"/logs?limit=0", "", ok(`[]`))
	r.expect("GET", path+"/logs?pivot=2026-11-23T20:12:28Z&delta=0s", "", ok(`[]`))
	r.expect("GET", path+"/logs?pivot=2026-11-23T20:12:28Z&delta=-5s", "", ok(`[]`))
	if len(*asked) > 0 {
		t.Errorf("asked for an empty range: %+v", *asked)
	}
	for _, bad := range []string{"limit=-1", "limit=x", "limit=", "skip=1.5", "skip=99999999999999999999"} {
		name, _, _ := strings.Cut(bad, "=")
		r.expect("GET", path+"/logs?"+bad, "", nok("Failed to parse "+name+" parameter, it must be a number that is not negative"))
	}
}

func TestLogsQueryFails(t *testing.T) {
	r := newRig(t, nil)
	first, second, third := r.endpoint(), r.endpoint(), r.endpoint()
	partition := func(e message.Endpoint) string {
		return subject.Logs(subject.PartitionOf(e.UUID), message.LogsQuery)
	}
	lost, _ := pages(nil)
	r.handle(partition(first), lost)
	r.expect("GET", "/endpoints/"+first.UUID+"/logs", "", nok("page 0 is lost"))
	nobody := r.endpoint()
	for partition(nobody) == partition(first) {
		nobody = r.endpoint()
	}
	r.expect("GET", "/endpoints/"+nobody.UUID+"/logs", "", nok(fmt.Sprintf("no replica of log-ingest answers for partition %d at the moment, try again later", subject.PartitionOf(nobody.UUID))))

	for name, size := range map[string]int{"small": 10, "large": 300 << 10} {
		t.Run(name+" answer is broken off", func(t *testing.T) {
			e := map[string]message.Endpoint{"small": second, "large": third}[name]
			h, _ := pages([]string{`{"x":"` + strings.Repeat("y", size) + `"}`}, nil)
			r.handle(partition(e), h)
			req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+r.svc.AdminAddr()+"/endpoints/"+e.UUID+"/logs", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Api-Key", adminKey)
			resp, err := client.Do(req)
			if err == nil {
				defer resp.Body.Close()
				_, err = io.ReadAll(resp.Body)
			}
			if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("error %v, want that of a connection broken off", err)
			}
		})
	}
	r.expect("GET", "/endpoints/"+first.UUID+"/logs", "", nok("page 0 is lost"))
}

func TestLogsQueryIsAskedAgain(t *testing.T) {
	r := newRig(t, nil)
	e := r.endpoint()
	h, asked := pages([]string{`{"n":1}`})
	fails := 2
	r.handle(subject.Logs(subject.PartitionOf(e.UUID), message.LogsQuery), func(ctx context.Context, data []byte) (*bus.Reply, error) {
		if fails--; fails >= 0 {
			return nil, fault.New(fault.Unavailable, "starting")
		}
		return h(ctx, data)
	})
	r.expect("GET", "/endpoints/"+e.UUID+"/logs", "", ok(`[{"n":1}]`))
	if len(*asked) != 1 {
		t.Errorf("asked %d times", len(*asked))
	}
}

func TestLogsQueryStopsWithTheClient(t *testing.T) {
	r := newRig(t, nil)
	e := r.endpoint()
	line := `{"x":"` + strings.Repeat("y", 100<<10) + `"}`
	all := slices.Repeat([][]string{slices.Repeat([]string{line}, 20)}, 10000)
	h, _ := pages(all...)
	r.handle(subject.Logs(subject.PartitionOf(e.UUID), message.LogsQuery), h)
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+r.svc.AdminAddr()+"/endpoints/"+e.UUID+"/logs", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Api-Key", adminKey)
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, resp.Body, 1<<20); err != nil {
		t.Fatal(err)
	}
	cancel()
	resp.Body.Close()
	admin := r.svc.adminHTTP.http.Handler.(*router)
	eventually(t, "the request has ended", func() bool { return len(admin.slots) == 0 })
}

func TestParseSpan(t *testing.T) {
	now := time.Date(2026, 11, 23, 20, 0, 0, 0, time.UTC)
	at := func(s string) time.Time {
		v, err := time.Parse(time.RFC3339, s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	const a, b = "2026-11-23T10:00:00.5Z", "2026-11-23T11:00:00+02:00"
	const order, mixed = "Start date must be before stop date", "Incompatible parameters, specify either start/stop or pivot/delta parameters"
	time3339 := func(name string) string {
		return "Failed to parse " + name + " parameter, it must be RFC3339 formated"
	}
	for query, want := range map[string]struct {
		span
		err string
	}{
		"":           {span{now.Add(-time.Hour), now}, ""},
		"start=" + a: {span{at(a), now}, ""},
		"stop=" + a:  {span{time.Time{}, at(a)}, ""},
		"start=" + url.QueryEscape(b) + "&stop=" + a:           {span{at(b), at(a)}, ""},
		"start=" + a + "&stop=" + a:                            {span{at(a), at(a)}, ""},
		"pivot=" + a:                                           {span{at(a).Add(-10 * time.Minute), at(a).Add(10 * time.Minute)}, ""},
		"pivot=" + a + "&delta=5s":                             {span{at(a).Add(-5 * time.Second), at(a).Add(5 * time.Second)}, ""},
		"delta=5m":                                             {span{now.Add(-5 * time.Minute), now.Add(5 * time.Minute)}, ""},
		"start=0001-01-01T00:00:00Z":                           {span{time.Time{}, now}, ""},
		"stop=0001-01-01T00:00:00Z":                            {span{time.Time{}, time.Time{}}, ""},
		"pivot=0001-01-01T00:00:00Z":                           {span{time.Time{}, time.Time{}.Add(10 * time.Minute)}, ""},
		"pivot=9999-12-31T23:59:00Z":                           {span{time.Date(9999, 12, 31, 23, 49, 0, 0, time.UTC), latest}, ""},
		"start=0001-01-01T00:00:00Z&delta=5s":                  {err: mixed},
		"start=&stop=&pivot=&delta=":                           {span{now.Add(-time.Hour), now}, ""},
		"start=yesterday":                                      {err: time3339("start")},
		"stop=yesterday":                                       {err: time3339("stop")},
		"pivot=yesterday":                                      {err: time3339("pivot")},
		"start=2021-03-03T21:34:51":                            {err: time3339("start")},
		"start=" + b:                                           {err: time3339("start")}, // the plus is a space
		"pivot=" + a + "&delta=5":                              {err: "Failed to parse delta parameter, it must be a valid Go time.Duration format"},
		"stop=x&start=x":                                       {err: time3339("start")},
		"start=2027-01-01T00:00:00Z":                           {err: order},
		"start=" + a + "&stop=2020-01-01T00:00:00Z&pivot=" + a: {err: order},
		"start=" + a + "&pivot=" + a:                           {err: mixed},
		"stop=" + a + "&delta=5s":                              {err: mixed},
	} {
		t.Run(query, func(t *testing.T) {
			values, err := url.ParseQuery(query)
			if err != nil {
				t.Fatal(err)
			}
			got, err := parseSpan(&call{query: values}, now)
			if want.err != "" {
				if err == nil || err.Error() != want.err {
					t.Errorf("error %v, want %s", err, want.err)
				}
			} else if err != nil || !got.start.Equal(want.start) || !got.stop.Equal(want.stop) {
				t.Errorf("%v, %v, want %v", got, err, want.span)
			}
		})
	}
}

func TestCommas(t *testing.T) {
	for in, want := range map[string]string{"": "", "a\n": "a", "a\nb\n": "a,b", "a\nb\nc\n": "a,b,c"} {
		if got := string(commas([]byte(in))); got != want {
			t.Errorf("commas(%q) = %q, want %q", in, got, want)
		}
	}
}
