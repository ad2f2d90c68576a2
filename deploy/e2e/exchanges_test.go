//go:build recorded

package e2e

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	// What the recorded manager was configured with.
	recordedOperator = "admin"
	recordedChannel  = "Microsoft-Windows-Sysmon/Operational"
	// uncovered is a channel that no rule names.
	uncovered = "Microsoft-Windows-Sysmon/Uncovered00"
	// patience is how long the pipeline may take to bring what is expected.
	patience = 10 * time.Second
	// lastSection is the last that was recorded with the version that the
	// product is compatible with.
	lastSection = "M"
)

// TestRecordedExchanges replays what was recorded between a WHIDS manager and
// its clients, and holds each answer against the table of verdicts: as
// recorded, and with the events on a channel that no rule covers, for WHIDS
// looked at no event itself.
func TestRecordedExchanges(t *testing.T) {
	exchanges := readTranscript(t, lastSection)
	lines := map[exchangeName]exchange{}
	for _, s := range verdicts {
		for i, name := range s.names() {
			lines[name] = s.exchanges[i]
		}
	}
	for _, x := range exchanges {
		if _, ok := lines[x.exchangeName]; !ok {
			t.Errorf("%s: no line in the table of verdicts", x.exchangeName)
		}
	}
	for name := range lines {
		if !slices.ContainsFunc(exchanges, func(x recordedExchange) bool { return x.exchangeName == name }) {
			t.Errorf("%s: the table of verdicts names an exchange that is not recorded", name)
		}
	}
	for name, channel := range map[string]string{"as recorded": recordedChannel, "no rule covers the events": uncovered} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newReplay(t, exchanges, channel)
			for _, x := range exchanges {
				r.prepare(x)
				r.hold(x, lines[x.exchangeName])
			}
		})
	}
}

// hold replays an exchange and holds the answer against a line of the table.
func (r *replayer) hold(x recordedExchange, line exchange) {
	r.t.Helper()
	var want *answers
	switch {
	case line.marked != nil && r.channel == recordedChannel:
		want = line.marked
	case line.verdict == different:
		want = &line.want
	}
	differs := 0
	for i, trip := range x.trips {
		found, recorded, text := r.settled(x, trip, want)
		if len(recorded) > 0 {
			differs++
		}
		for _, f := range found {
			r.t.Errorf("%s: request %d: %s\n\tanswer: %.600s", x.exchangeName, i+1, f, text)
		}
	}
	if want != nil && differs == 0 {
		r.t.Errorf("%s: different in the table, but the same", x.exchangeName)
	}
}

// settled makes a round trip, until the answer is what it should be where the
// pipeline has yet to bring something. It returns how the answer differs from
// what it should be, how from the recorded one, and the answer as text.
func (r *replayer) settled(x recordedExchange, trip roundTrip, want *answers) (found, recorded []string, text string) {
	r.t.Helper()
	for range trip.keyChecks {
		check := roundTrip{ask: recordedMessage{line: "GET /key HTTP/1.1", header: trip.ask.header.Clone()}, answer: r.get("E", "good: returns the server key, text").trips[0].answer}
		check.ask.header.Del("Content-Encoding")
		check.ask.header.Del("Content-Length")
		check.ask.header.Set("Host", "manager:1519")
		diff, _, _ := r.roundTrip(x, check, nil)
		found = append(found, diff...)
	}
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		var diff []string
		diff, recorded, text = r.roundTrip(x, trip, want)
		if len(diff) == 0 || !arrives(trip) || time.Now().After(end) {
			return append(found, diff...), recorded, text
		}
	}
}

// arrives is whether an answer depends on what the pipeline brings.
func arrives(trip roundTrip) bool {
	method, rest, _ := strings.Cut(trip.ask.line, " ")
	path, _, _ := strings.Cut(strings.Fields(rest)[0], "?")
	return method == http.MethodGet && strings.HasPrefix(path, "/endpoints") && !strings.Contains(rest, "wait=")
}

// roundTrip sends a request and compares the answer with what it should be,
// which is the recorded one where want is nil, and with the recorded one.
func (r *replayer) roundTrip(x recordedExchange, trip roundTrip, want *answers) (found, recorded []string, text string) {
	r.t.Helper()
	ask := r.request(x, trip.ask)
	done := make(chan error, 1)
	if strings.HasPrefix(x.title, "wait=true on a pending command") {
		go func() { done <- r.complete(trip) }()
	} else {
		done <- nil
	}
	got, err := send(ask)
	if err := <-done; err != nil {
		r.t.Errorf("%s: agent: %v", x.exchangeName, err)
	}
	if err != nil {
		return []string{err.Error()}, nil, err.Error()
	}
	text = fmt.Sprintf("%d %s", got.status, got.body)
	if want == nil {
		if trip.answer == nil {
			return []string{"an answer, where none is recorded"}, nil, text
		}
		return r.compare(ask, trip.answer, got), nil, text
	}
	wanted, err := r.expected(ask, trip, want)
	if err != nil {
		r.t.Fatalf("%s: %v", x.exchangeName, err)
	}
	found = r.compare(ask, wanted, got)
	if trip.answer == nil {
		return found, []string{"an answer, where none is recorded"}, text
	}
	// What is found out about names here must not stand for the recorded ones.
	known := r.names
	r.names = maps.Clone(known)
	recorded = r.compare(ask, trip.answer, got)
	r.names = known
	return found, recorded, text
}

func (r *replayer) compare(ask *request, want *recordedMessage, got *response) []string {
	c := &comparison{names: r.names, moreRules: r.moreRules, unordered: ask.events}
	if status := strings.Fields(want.line)[1]; status != strconv.Itoa(got.status) {
		c.differ("status", "recorded %s, got %d", status, got.status)
	}
	expected := r.present(want.body, ask.events)
	kind := want.header.Get("Content-Type")
	if ask.admin && strings.HasPrefix(expected, `{"data":`) {
		kind = "application/json; charset=utf-8"
	}
	if g := got.header.Get("Content-Type"); g != kind {
		c.differ("Content-Type", "want %q, got %q", kind, g)
	}
	for _, name := range []string{"X-Content-Type-Options", "Location"} {
		if w, g := r.names.translate(want.header.Get(name)), got.header.Get(name); w != "" && w != g {
			c.differ(name, "recorded %q, got %q", w, g)
		}
	}
	body := got.body
	if want.packed {
		z, err := gzip.NewReader(strings.NewReader(body))
		if err != nil {
			c.differ("body", "%v", err)
			return c.found
		}
		text, err := io.ReadAll(z)
		if err != nil {
			c.differ("body", "%v", err)
		}
		body = string(text)
	}
	document, err := decode(expected)
	switch {
	case want.cut > 0:
		c.contains(elements(expected), elements(body))
		if ask.path == "/rules" && !ask.admin {
			r.rulesText = body
		}
	case ask.path == "/rules/sha256":
		if err := r.names.learn(strings.TrimSpace(want.body), body); err != nil {
			c.differ("body", "%v", err)
		}
	case err == nil && (strings.HasPrefix(expected, "{") || strings.HasPrefix(expected, "[")):
		actual, err := decode(body)
		if err != nil {
			c.differ("body", "%v in %.200s", err, body)
			break
		}
		name := ""
		if ask.path == "/containers" {
			name = sets[0]
		}
		c.value("", name, document, actual)
	case generated(expected) && generated(body):
		if err := r.names.learn(expected, body); err != nil {
			c.differ("body", "%v", err)
		}
	case expected != body:
		c.differ("body", "recorded %.200q, got %.200q", expected, body)
	}
	return c.found
}

// present puts a recorded text into the present: names, times and channel.
func (r *replayer) present(text string, events bool) string {
	text = r.names.translate(text)
	if events {
		text = strings.ReplaceAll(text, recordedChannel, r.channel)
	}
	return timeText.ReplaceAllStringFunc(text, func(s string) string {
		at, err := time.Parse(time.RFC3339Nano, s)
		if err != nil || at.Sub(r.around).Abs() > 24*time.Hour {
			return s
		}
		return at.Add(r.shift).Format(time.RFC3339Nano)
	})
}

// request is what goes over the wire.
type request struct {
	addr, method, target, path string
	header                     http.Header
	body                       []byte
	admin, events              bool
}

// response is what came back.
type response struct {
	status int
	header http.Header
	body   string
}

func (r *replayer) request(x recordedExchange, m recordedMessage) *request {
	r.t.Helper()
	fields := strings.Fields(m.line)
	q := &request{method: fields[0], header: m.header.Clone()}
	body := m.body
	if len(fields) < 3 {
		body = r.complement(x, q, fields[1])
	} else {
		q.admin = m.header.Get("Host") == "manager:1520"
	}
	if m.cut > 0 {
		body = oversized(r.t, m)
	}
	path, _, _ := strings.Cut(fields[1], "?")
	q.path = path
	q.events = strings.HasSuffix(path, "/logs") || strings.HasSuffix(path, "/alerts")
	// What a request names is no generated value of WHIDS.
	for _, text := range []string{m.line, body} {
		for _, s := range slices.Concat(uuidText.FindAllString(text, -1), keyText.FindAllString(text, -1)) {
			if _, ok := r.names[s]; !ok {
				r.names[s] = s
			}
		}
	}
	if q.method == http.MethodPost && path == "/logs" {
		r.note(body)
	}
	q.target = r.present(fields[1], false)
	switch {
	case strings.HasPrefix(x.title, "wait=true, never completed"):
		q.target += "&wait-timeout=1s"
	case strings.HasPrefix(x.title, "alerts: delta only"):
		q.target = strings.Replace(q.target, "delta=5m", "delta=30m", 1)
	}
	q.body = []byte(r.present(body, q.events))
	if m.packed {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, _ = z.Write(q.body)
		_ = z.Close()
		q.body = b.Bytes()
		if strings.HasPrefix(x.title, "truncated gzip") {
			q.body = q.body[:len(q.body)-8]
		}
	}
	q.addr = strings.TrimPrefix(r.p.agent, "http://")
	if q.admin {
		q.addr = strings.TrimPrefix(r.p.admin, "http://")
	}
	for _, name := range []string{"Uuid", "Api-Key"} {
		if v := q.header.Get(name); v != "" {
			q.header.Set(name, r.names.translate(v))
		}
	}
	return q
}

// complement returns the body of a request of which only the line was
// recorded, and sets what else it was sent with.
func (r *replayer) complement(x recordedExchange, q *request, target string) string {
	r.t.Helper()
	q.admin = strings.HasPrefix(target, "/endpoints")
	if q.admin {
		q.header.Set("Api-Key", recordedOperator)
	} else {
		q.header.Set("Uuid", recordedUUID)
		q.header.Set("Api-Key", r.key)
		q.header.Set("Hostname", "H")
		if strings.HasPrefix(x.title, "so another host") {
			q.header.Set("Hostname", "OTHER")
		}
	}
	switch {
	case x.title == "upload without dump-dir":
		return r.get("J", "agent: PostDump").trips[0].ask.body
	case strings.HasPrefix(x.title, "an event without a time stamp"):
		return r.get("H", "event without System.TimeCreated: the handler panics, connection closed").trips[0].ask.body
	case strings.HasPrefix(x.title, "an alert"):
		report, err := decode(r.get("L", "report").trips[0].answer.body)
		if err != nil {
			r.t.Fatal(err)
		}
		data, _ := report.(object).get("data")
		at, _ := data.(object).get("start-time")
		return fmt.Sprintf(`{"Event":{"EventData":{},"GeneInfo":{"Signature":["AddUser"],"Criticality":10},"System":{"Channel":"%s","EventID":"1","TimeCreated":{"SystemTime":"%s"}}}}`,
			recordedChannel, at)
	case x.title == "post a command":
		return `{"command-line":"echo x"}`
	}
	return ""
}

// oversized rebuilds a batch of which the beginning is recorded: an event, a
// long one, and one like the first.
func oversized(t *testing.T, m recordedMessage) string {
	t.Helper()
	first, long, ok := strings.Cut(m.body, "\n")
	cut := strings.Index(first, `},"System"`)
	if !ok || cut < 0 || !strings.HasSuffix(long, "A") {
		t.Fatal("the recorded batch is of another form")
	}
	end := `"` + first[cut:] + "\n" + strings.Replace(first, `"N":"7"`, `"N":"9"`, 1) + "\n"
	pad := m.cut - len(m.body) - len(end)
	if pad < 64<<10 {
		t.Fatalf("%d bytes are missing in the recorded batch", pad)
	}
	return m.body + strings.Repeat("A", pad) + end
}

// send makes a request byte for byte, so that no client cleans its path.
func send(q *request) (*response, error) {
	conn, err := net.DialTimeout("tcp", q.addr, deadline)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(deadline)); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", q.method, q.target, q.addr)
	q.header.Del("Host")
	q.header.Del("Content-Length")
	if err := q.header.Write(&b); err != nil {
		return nil, err
	}
	if len(q.body) > 0 || q.method == http.MethodPost {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(q.body))
	}
	b.WriteString("\r\n")
	b.Write(q.body)
	// The server may answer, and close, before it has read everything.
	_, writeErr := conn.Write(b.Bytes())
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: q.method})
	if err != nil {
		return nil, errors.Join(writeErr, err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	return &response{resp.StatusCode, resp.Header, string(body)}, nil
}

// complete is the agent that fetches the waiting command and posts the
// recorded result.
func (r *replayer) complete(trip roundTrip) error {
	at := endpoint{UUID: r.names.translate(recordedUUID), Key: r.names.translate(r.key)}
	do := func(method string, body []byte) ([]byte, error) {
		req := r.p.request(at, method, "/commands", bytes.NewReader(body), false)
		req.Header.Set("Hostname", r.get("E", "good: returns the server key, text").trips[0].ask.header.Get("Hostname"))
		resp, err := r.p.client.Do(req)
		if err != nil {
			return nil, err
		}
		defer func() { _ = resp.Body.Close() }()
		text, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s /commands: %s", method, resp.Status)
		}
		return text, err
	}
	fetched, err := do(http.MethodGet, nil)
	if err != nil {
		return err
	}
	var command map[string]any
	var result struct {
		Data struct {
			Name   string
			Args   []string
			Stdout string
		}
	}
	if err := json.Unmarshal(fetched, &command); err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(trip.answer.body), &result); err != nil {
		return err
	}
	if _, err := base64.StdEncoding.DecodeString(result.Data.Stdout); err != nil {
		return err
	}
	command["name"], command["args"], command["stdout"] = result.Data.Name, result.Data.Args, result.Data.Stdout
	body, err := json.Marshal(command)
	if err != nil {
		return err
	}
	_, err = do(http.MethodPost, body)
	return err
}
