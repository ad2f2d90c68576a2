//go:build recorded

package e2e

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
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

// replayer is a run through the recording.
type replayer struct {
	t         *testing.T
	p         *proc
	exchanges []recordedExchange
	channel   string
	// shift moves recorded times into the present; around is the time that
	// the recording was made at.
	shift  time.Duration
	around time.Time
	names  names
	key    string
	rules  map[string]json.RawMessage
	// moreRules is how many rules there are beyond those of the recording.
	moreRules int
	// rulesText is the last answer to GET /rules of an agent.
	rulesText string
	// events are the lines that were posted, by N, as recorded.
	events map[string]string
}

func newReplay(t *testing.T, exchanges []recordedExchange, channel string) *replayer {
	t.Helper()
	r := &replayer{t: t, exchanges: exchanges, channel: channel, names: names{}, events: map[string]string{}}
	r.key = r.get("D", "one").answerData(t, "key")
	for _, x := range exchanges {
		if x.section != "H" {
			continue
		}
		for _, trip := range x.trips {
			for _, at := range timeText.FindAllString(trip.ask.body, -1) {
				if when, err := time.Parse(time.RFC3339Nano, at); err == nil && when.After(r.around) {
					r.around = when
				}
			}
		}
	}
	r.shift = time.Since(r.around).Truncate(time.Second)
	r.readRules()
	first := r.get("B", "stats").trips[0].answer.body
	var stats struct {
		Data struct {
			Rules int `json:"rule-count"`
		}
	}
	if err := json.Unmarshal([]byte(first), &stats); err != nil {
		t.Fatal(err)
	}
	r.moreRules = len(r.rules) - stats.Data.Rules
	r.manager(true)
	return r
}

func (r *replayer) get(section, title string) recordedExchange {
	r.t.Helper()
	i := slices.IndexFunc(r.exchanges, func(x recordedExchange) bool { return x.exchangeName == exchangeName{section, title, 1} })
	if i < 0 {
		r.t.Fatalf("%s. %s is not recorded", section, title)
	}
	return r.exchanges[i]
}

// answerData returns a text of the recorded answer's data.
func (x recordedExchange) answerData(t *testing.T, name string) string {
	t.Helper()
	v, err := decode(x.trips[0].answer.body)
	if err != nil {
		t.Fatal(err)
	}
	data, _ := v.(object).get("data")
	if name != "" {
		data, _ = data.(object).get(name)
	}
	s, ok := data.(string)
	if !ok {
		t.Fatalf("%s: no text %q", x.exchangeName, name)
	}
	return s
}

// readRules puts together the rules of the recorded manager: the recorded
// ones as they are, the others from the set that is nearest to its own.
func (r *replayer) readRules() {
	r.t.Helper()
	r.rules = map[string]json.RawMessage{}
	add := func(rule json.RawMessage) {
		var named struct{ Name string }
		if err := json.Unmarshal(rule, &named); err != nil || named.Name == "" {
			r.t.Fatalf("rule %.80s: %v", rule, err)
		}
		r.rules[named.Name] = rule
	}
	text, err := os.ReadFile(recorded(r.t, "rules", "gene-rules-v1.gen"))
	if err != nil {
		r.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		add(json.RawMessage(strings.TrimSpace(line)))
	}
	for _, x := range []recordedExchange{r.get("C", "one rule by regexp"), r.get("C", "the regexp is not anchored"), r.get("H", "criticalities")} {
		var list struct{ Data []json.RawMessage }
		if err := json.Unmarshal([]byte(x.trips[0].answer.body), &list); err != nil {
			r.t.Fatal(err)
		}
		for _, rule := range list.Data {
			add(rule)
		}
	}
	beginning := r.get("F", "GetRules").trips[0].answer.body
	for line := range strings.Lines(beginning) {
		if json.Valid([]byte(line)) {
			add(json.RawMessage(strings.TrimSpace(line)))
		}
	}
}

// manager writes the recorded manager's configuration and starts a Nightjar
// that takes it over.
func (r *replayer) manager(first bool) {
	r.t.Helper()
	dir := r.t.TempDir()
	for _, sub := range []string{"rules", "containers", "dumps", "logs", "drop"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			r.t.Fatal(err)
		}
	}
	var text bytes.Buffer
	for _, rule := range r.rules {
		if err := json.Compact(&text, rule); err != nil {
			r.t.Fatal(err)
		}
		text.WriteByte('\n')
	}
	write(r.t, filepath.Join(dir, "rules", "compiled.gen"), text.String())
	config := fmt.Sprintf("rules-dir = %q\n", filepath.Join(dir, "rules"))
	if first {
		var lines []string
		if err := json.Unmarshal([]byte(r.get("F", "GetContainer").trips[0].answer.body), &lines); err != nil {
			r.t.Fatal(err)
		}
		write(r.t, filepath.Join(dir, "containers", "blacklist.txt"), strings.Join(lines, "\n")+"\n")
		write(r.t, filepath.Join(dir, "containers", "empty.txt"), "")
		config += fmt.Sprintf("dump-dir = %q\ncontainers-dir = %q\n", filepath.Join(dir, "dumps"), filepath.Join(dir, "containers"))
	}
	config += fmt.Sprintf("\n[admin-api]\nhost = \"localhost\"\nport = 1520\n\n[[admin-api.users]]\nidentifier = \"recorder\"\nkey = %q\n", recordedOperator)
	config += "\n[endpoint-api]\nhost = \"localhost\"\nport = 1519\n"
	if first {
		config += fmt.Sprintf("server-key = %q\n", r.get("E", "good: returns the server key, text").trips[0].answer.body)
	}
	config += fmt.Sprintf("\n[[endpoint-api.endpoints]]\nuuid = %q\nkey = %q\n", recordedUUID, r.key)
	config += fmt.Sprintf("\n[logging]\nroot = %q\nlogfile = \"manager.log\"\nenable-endpoint-logging = %t\nverbose-http = false\n\n[tls]\ncert = \"\"\nkey = \"\"\n",
		filepath.Join(dir, "logs"), first)
	file := filepath.Join(dir, "config.toml")
	write(r.t, file, config)
	r.dropped(filepath.Join(dir, "drop"))
	if r.p != nil {
		r.p.terminate()
	}
	r.p = start(r.t, r.t.TempDir(), "--tls", "off", "--import-whids", file, "--drop-dir", filepath.Join(dir, "drop"))
}

// dropped writes the file that the recorded command drops.
func (r *replayer) dropped(dir string) {
	r.t.Helper()
	var sent struct {
		Drop []struct {
			Name string
			Data []byte
		}
	}
	trips := r.get("G", "agent: FetchCommand").trips
	if err := json.Unmarshal([]byte(trips[0].answer.body), &sent); err != nil || len(sent.Drop) == 0 {
		r.t.Fatalf("no dropped file is recorded: %v", err)
	}
	for _, f := range sent.Drop {
		write(r.t, filepath.Join(dir, f.Name), string(f.Data))
	}
}

// prepare brings about what WHIDS's state had become before an exchange, by
// hand or by a behaviour that Nightjar does not share.
func (r *replayer) prepare(x recordedExchange) {
	r.t.Helper()
	switch x.section + ". " + x.title {
	case "C. (rule directory restored by hand) reload", "C. reload, all good again", "D. list":
		r.restoreRules()
	case "F. admin adds a rule ...":
		sum := sha256.Sum256([]byte(r.rulesText))
		if recorded := strings.TrimSpace(r.get("F", "GetRulesSha256 (a GET /key precedes every call of the client)").trips[1].answer.body); r.names[recorded] != hex.EncodeToString(sum[:]) {
			r.t.Error("F. GetRules: the hash is not that of the rules")
		}
	case "G. agent: FetchCommand", "G. wait=true on a pending command (an agent completes it 2 s later)":
		r.cancelOlder()
	case "L. server key unset: 200 and an empty body":
		r.names = names{}
		r.manager(false)
	case "M. endpoint: known (configuration file), hostname / ip / last-connection / command are gone":
		r.p.terminate()
		r.p.run()
	}
}

func (r *replayer) admin(method, path, body string) answer {
	r.t.Helper()
	a, err := r.p.ask(method, path, body)
	if err != nil {
		r.t.Fatal(err)
	}
	if a.Error != "" {
		r.t.Fatalf("%s %s: %s", method, path, a.Error)
	}
	return a
}

// restoreRules makes the rules what they were at the start.
func (r *replayer) restoreRules() {
	r.t.Helper()
	r.admin(http.MethodGet, "/rules/reload", "")
	var live []json.RawMessage
	if err := json.Unmarshal(r.admin(http.MethodGet, "/rules", "").Data, &live); err != nil {
		r.t.Fatal(err)
	}
	for _, rule := range live {
		var named struct{ Name string }
		if err := json.Unmarshal(rule, &named); err != nil {
			r.t.Fatal(err)
		}
		if _, ok := r.rules[named.Name]; !ok {
			r.admin(http.MethodDelete, "/rules?name="+named.Name, "")
		}
	}
	var all bytes.Buffer
	for _, rule := range r.rules {
		all.Write(rule)
	}
	r.admin(http.MethodPost, "/rules?update=true", all.String())
}

// cancelOlder cancels every command that waits but the newest.
func (r *replayer) cancelOlder() {
	r.t.Helper()
	path := "/endpoints/" + recordedUUID + "/command"
	type command struct{ UUID, State string }
	var newest command
	var all []command
	if err := json.Unmarshal(r.admin(http.MethodGet, path, "").Data, &newest); err != nil {
		r.t.Fatal(err)
	}
	if err := json.Unmarshal(r.admin(http.MethodGet, path+"s", "").Data, &all); err != nil {
		r.t.Fatal(err)
	}
	for _, c := range all {
		if c.UUID != newest.UUID && c.State == "queued" {
			r.admin(http.MethodDelete, path+"/"+c.UUID, "")
		}
	}
}

// settled makes a round trip, until the answer is what it should be where the
// pipeline has yet to bring something. It returns how the answer differs from
// what it should be, how from the recorded one, and the answer as text.
func (r *replayer) settled(x recordedExchange, trip roundTrip, want *answers) (found, recorded []string, text string) {
	r.t.Helper()
	for range trip.keyChecks {
		check := roundTrip{ask: message{line: "GET /key HTTP/1.1", header: trip.ask.header.Clone()}, answer: r.get("E", "good: returns the server key, text").trips[0].answer}
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

func (r *replayer) compare(ask *request, want *message, got *response) []string {
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

func (r *replayer) request(x recordedExchange, m message) *request {
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
	if strings.HasPrefix(x.title, "wait=true, never completed") {
		q.target += "&wait-timeout=1s"
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
func oversized(t *testing.T, m message) string {
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
