package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// stores are the folders of the services' Badger stores.
var stores = []string{"api-gateway", "rule-engine", "endpoint-registry", "command-dispatch", "log-ingest", "report-scorer"}

// snapshot asks for everything that the admin API shows of the given
// endpoints and of all together, as it is now. Times of last contact are left
// out: they are written now and then, not at each contact.
func (p *proc) snapshot(endpoints ...endpoint) (map[string]string, error) {
	paths := []string{"/rules", "/stats", "/endpoints", "/endpoints/reports"}
	for _, e := range endpoints {
		for _, what := range []string{"", "/logs" + everything, "/alerts" + everything, "/logs" + everything + "&limit=7&skip=3", "/report", "/command", "/commands", "/artifacts"} {
			paths = append(paths, "/endpoints/"+e.UUID+what)
		}
	}
	shown := make(map[string]string, len(paths))
	for _, path := range paths {
		a, err := p.ask(http.MethodGet, path, "")
		if err != nil {
			return nil, err
		}
		if a.Error != "" {
			return nil, fmt.Errorf("GET %s: %s", path, a.Error)
		}
		var value any
		dec := json.NewDecoder(bytes.NewReader(a.Data))
		dec.UseNumber()
		if err := dec.Decode(&value); err != nil {
			return nil, fmt.Errorf("GET %s: %w", path, err)
		}
		forget(value)
		text, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		shown[path] = string(text)
	}
	return shown, nil
}

// forget removes the times of last contact, and whence it came: both are written
// a moment later.
func forget(value any) {
	switch v := value.(type) {
	case map[string]any:
		delete(v, "last-connection")
		delete(v, "ip")
		for _, x := range v {
			forget(x)
		}
	case []any:
		for _, x := range v {
			forget(x)
		}
	}
}

// shows waits until the admin API shows what it showed before.
func (p *proc) shows(when string, want map[string]string, endpoints ...endpoint) {
	p.t.Helper()
	eventually(p.t, when, func() error {
		got, err := p.snapshot(endpoints...)
		if err != nil {
			return err
		}
		for path, text := range want {
			if got[path] != text {
				return fmt.Errorf("GET %s: %.1000s\nwant %.1000s", path, got[path], text)
			}
		}
		return nil
	})
}

// showsAnew kills the manager, deletes every store and waits until the admin API
// shows what it showed before.
func (p *proc) showsAnew(want map[string]string, endpoints ...endpoint) {
	p.t.Helper()
	p.kill()
	for _, store := range stores {
		p.remove(store)
	}
	p.run()
	p.shows("without any store", want, endpoints...)
}

// remove deletes a service's store. The program must not run.
func (p *proc) remove(store string) {
	p.t.Helper()
	dir := filepath.Join(p.dir, store)
	if !fileExists(dir) {
		p.t.Fatalf("no store in %s", dir)
	}
	if err := os.RemoveAll(dir); err != nil {
		p.t.Fatal(err)
	}
}

// filledAlerts is how many alerts each endpoint has that fill returns, one of
// them one more.
const filledAlerts = 20

// fill makes a manager hold something of everything, and returns the
// endpoints that have it.
func (p *proc) fill() []endpoint {
	p.t.Helper()
	p.data(http.MethodPost, "/rules", testRule+"\n"+ruleOf("Marked", 6, "T1014", "x")+"\n"+ruleOf("Staged", 1, "", "")+"\n"+ruleOf("Gone", 1, "", ""))
	p.data(http.MethodPost, "/rules?update=true", ruleOf("Staged", 9, "", ""))
	p.data(http.MethodDelete, "/rules?name=Gone", "")
	endpoints := []endpoint{p.enrol(), p.enrol(), p.enrol()}
	gone := p.enrol()
	at := time.Now().Add(-2 * time.Hour)
	for i, e := range endpoints {
		var lines [][]byte
		for n := range 60 {
			when := at.Add(time.Duration((n*37)%60) * time.Minute)
			switch n % 6 {
			case i:
				lines = append(lines, badEvent(n, when))
			case 5:
				lines = append(lines, markedEvent(n, when, "Marked", "Unknown"))
			default:
				lines = append(lines, plainEvent(n, when))
			}
		}
		p.mustPost(e, lines...)
		p.mustPost(e, lines[20:30]...)
		p.mustSend(e, artifact{Filename: "dump.bin", Content: bytes.Repeat([]byte{byte(i), 7}, 200<<10)})
		p.mustSend(e, artifact{Filename: "parts.bin", Content: []byte("one"), Chunk: 1, Total: 2})
		p.mustSend(e, artifact{Filename: "parts.bin", Content: []byte("two"), Chunk: 2, Total: 2})
	}
	e := endpoints[0]
	p.command(e, `{"command-line":"first --arg","fetch-files":["/out"]}`)
	c := p.fetchCommand(e)
	p.answer(e, bytes.NewReader(fmt.Appendf(nil, `{"uuid":%q,"name":"first","args":["--arg"],"fetch":{},"stdout":"b2s=","error":""}`, c.UUID)))
	p.command(e, `{"command-line":"sent"}`)
	p.fetchCommand(e)
	p.command(e, `{"command-line":"queued"}`)
	cancelled := p.command(e, `{"command-line":"cancelled"}`)
	p.data(http.MethodDelete, "/endpoints/"+e.UUID+"/command/"+cancelled.UUID, "")
	p.data(http.MethodDelete, "/endpoints/"+gone.UUID, "")
	p.data(http.MethodDelete, "/endpoints/"+endpoints[2].UUID+"/hostname", "")
	for _, e := range endpoints {
		eventually(p.t, "alerts", func() error {
			if n := len(p.events(e, "alerts"+everything)); n != filledAlerts {
				return fmt.Errorf("%d alerts, want %d", n, filledAlerts)
			}
			return nil
		})
		p.reportIs(e, filledAlerts, `{}`)
	}
	p.data(http.MethodDelete, "/endpoints/"+endpoints[1].UUID+"/report", "")
	p.mustPost(endpoints[1], badEvent(1000, time.Now().Add(-time.Minute)))
	p.reportIs(endpoints[1], 1, `{}`)
	eventually(p.t, "the last event with its detection", func() error {
		all, marked := len(p.events(endpoints[1], "logs"+everything)), len(p.events(endpoints[1], "alerts"+everything))
		if all != 61 || marked != filledAlerts+1 {
			return fmt.Errorf("%d events, %d alerts", all, marked)
		}
		return nil
	})
	return endpoints
}

// TestRebuild deletes each service's store, one at a time and then all, and
// demands the same answers as before.
func TestRebuild(t *testing.T) {
	t.Parallel()
	p := start(t, t.TempDir(), "--tls", "off")
	endpoints := p.fill()
	before, err := p.snapshot(endpoints...)
	if err != nil {
		t.Fatal(err)
	}
	for _, store := range append([]string{""}, stores...) {
		p.terminate()
		if store != "" {
			p.remove(store)
		}
		p.run()
		p.shows("without store "+store, before, endpoints...)
	}
	p.showsAnew(before, endpoints...)
	// What is staged still is, and a repetition is still known as one.
	p.data(http.MethodGet, "/rules/reload", "")
	if rules := string(p.data(http.MethodGet, "/rules?name=Gone|Staged", "")); !strings.Contains(rules, `"Criticality":9`) || strings.Contains(rules, "Gone") {
		t.Errorf("after a reload the rules are %s", rules)
	}
	if n := len(p.alerts()); n != 3*filledAlerts+1 {
		t.Errorf("%d alerts at the SIEM, want %d", n, 3*filledAlerts+1)
	}
	if c := p.fetchCommand(endpoints[0]); c.Name != "queued" {
		t.Errorf("handed out is %s", c.Name)
	}
	if _, body := p.raw("/endpoints/" + endpoints[0].UUID + "/artifacts/" + processGUID + "/" + eventHash + "/parts.bin?raw=true"); string(body) != "onetwo" {
		t.Errorf("artifact is %q", body)
	}
}
