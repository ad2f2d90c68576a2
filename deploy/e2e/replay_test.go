//go:build recorded

package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

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
