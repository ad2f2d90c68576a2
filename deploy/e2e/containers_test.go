package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// get makes an agent's request and returns its answer.
func (p *proc) get(e endpoint, path string) (int, string, error) {
	resp, err := p.client.Do(p.request(e, http.MethodGet, path, nil, false))
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

// getOK makes an agent's request and demands 200.
func (p *proc) getOK(e endpoint, path string) (string, error) {
	code, text, err := p.get(e, path)
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("GET %s: %d %s", path, code, text)
	}
	return text, err
}

// containerRule makes a rule that matches events of a binary whose name is a
// line of a container.
func containerRule(name, container string) string {
	return fmt.Sprintf(`{"Name":%q,"Meta":{"EventIDs":[1],"Channels":["Microsoft-Windows-Sysmon/Operational"],"Criticality":8},"Matches":["$i: extract('(?P<name>[^\\\\]+)$', Image) in %s"],"Condition":"$i"}`, name, container)
}

// syncContainers does what an agent does: it lists the containers, fetches
// each, and verifies it by its hash.
func (p *proc) syncContainers(e endpoint) (map[string][]string, error) {
	list, err := p.getOK(e, "/containers")
	if err != nil {
		return nil, err
	}
	var names []string
	if err := json.Unmarshal([]byte(list), &names); err != nil {
		return nil, err
	}
	all := map[string][]string{}
	for _, name := range names {
		announced, err := p.getOK(e, "/container/sha256/"+name)
		if err != nil {
			return nil, err
		}
		content, err := p.getOK(e, "/container/"+name)
		if err != nil {
			return nil, err
		}
		var lines []string
		if err := json.Unmarshal([]byte(content), &lines); err != nil {
			return nil, err
		}
		sum := sha256.Sum256([]byte(strings.Join(lines, "")))
		if announced != hex.EncodeToString(sum[:]) {
			return nil, fmt.Errorf("container %s has SHA-256 %x, announced is %s", name, sum, announced)
		}
		all[name] = lines
	}
	return all, nil
}

// TestContainers detects with a container from a folder and hands it to an
// agent, while another rule waits for a container that nobody has.
func TestContainers(t *testing.T) {
	containers, rules := t.TempDir(), t.TempDir()
	write(t, filepath.Join(containers, "badnames.list.txt"), "Other.exe\r\n  spaced \nEVIL.exe\n")
	write(t, filepath.Join(containers, "empty.txt"), "")
	write(t, filepath.Join(rules, "rules.gen"), containerRule("KnownBad", "badnames")+"\n"+containerRule("Waits", "nowhere")+"\n")
	dir := t.TempDir()
	p := start(t, dir, "--containers-dir", containers, "--rules-dir", rules)
	e := p.enrol()

	agentSees := func(want map[string][]string) {
		t.Helper()
		eventually(t, "containers", func() error {
			got, err := p.syncContainers(e)
			if err != nil {
				return err
			}
			for name, lines := range want {
				if !slices.Equal(got[name], lines) {
					return fmt.Errorf("container %s is %q, want %q", name, got[name], lines)
				}
			}
			if len(got) != len(want) {
				return fmt.Errorf("containers %q, want %q", got, want)
			}
			return nil
		})
	}
	agentSees(map[string][]string{"badnames": {"Other.exe", "  spaced ", "EVIL.exe"}, "empty": {}})
	for _, path := range []string{"/container/nowhere", "/container/sha256/nowhere"} {
		if code, text, err := p.get(e, path); err != nil || code != http.StatusNotFound || text != "Unavailable container\n" {
			t.Errorf("GET %s: %d %q %v", path, code, text, err)
		}
	}

	var stats struct {
		Rules int `json:"rule-count"`
	}
	if err := json.Unmarshal(p.data(http.MethodGet, "/stats", ""), &stats); err != nil || stats.Rules != 2 {
		t.Errorf("%d rules are counted, want 2, %v", stats.Rules, err)
	}
	var listed []struct{ Name string }
	if err := json.Unmarshal(p.data(http.MethodGet, "/rules", ""), &listed); err != nil || len(listed) != 2 {
		t.Errorf("rules %v are listed, want both, %v", listed, err)
	}
	waiting := func(want float64) {
		t.Helper()
		eventually(t, "waiting rules", func() error {
			if n := p.metric("nightjar_rule_engine_rules_waiting"); n != want {
				return fmt.Errorf("%v rules wait for a container, want %v", n, want)
			}
			return nil
		})
	}
	waiting(1)

	at := time.Now().Add(-time.Minute)
	alertsAre := func(want ...string) {
		t.Helper()
		eventually(t, "alerts", func() error {
			var got []string
			for _, raw := range p.events(e, "alerts"+everything) {
				var a struct {
					Event struct {
						EventData struct{ N string }
						GeneInfo  struct{ Signature []string }
					}
				}
				if err := json.Unmarshal(raw, &a); err != nil {
					return err
				}
				got = append(got, a.Event.EventData.N+" "+strings.Join(a.Event.GeneInfo.Signature, "+"))
			}
			if !slices.Equal(got, want) {
				return fmt.Errorf("%q, want %q", got, want)
			}
			return nil
		})
	}
	p.mustPost(e, plainEvent(1, at), badEvent(2, at.Add(time.Second)), plainEvent(3, at.Add(2*time.Second)))
	alertsAre("2 KnownBad")

	// The container that a rule waits for arrives, the other one changes.
	p.terminate()
	write(t, filepath.Join(containers, "nowhere"), "app.exe\n")
	write(t, filepath.Join(containers, "badnames.list.txt"), "other.exe")
	p.run()
	waiting(0)
	agentSees(map[string][]string{"badnames": {"other.exe"}, "empty": {}, "nowhere": {"app.exe"}})
	p.mustPost(e, badEvent(4, at.Add(3*time.Second)), plainEvent(5, at.Add(4*time.Second)))
	alertsAre("2 KnownBad", "5 Waits")
}

// TestContainersAPI changes containers by the admin API: a rule starts and
// stops to work with the answer, and a restart keeps everything, also against
// the folder. A million lines go in and come back in bounded memory.
func TestContainersAPI(t *testing.T) {
	containers := t.TempDir()
	write(t, filepath.Join(containers, "badnames.txt"), "other.exe\n")
	write(t, filepath.Join(containers, "deleted.txt"), "x\n")
	p := start(t, t.TempDir(), "--containers-dir", containers, "--tls", "off")
	e := p.enrol()
	p.data(http.MethodPost, "/rules", containerRule("KnownBad", "badnames")+"\n"+containerRule("Waits", "arriving"))
	at, sent, before := time.Now().Add(-time.Minute), 0, 0
	var want []string
	// post sends an event of evil.exe, of which found is to be found.
	post := func(found string) {
		t.Helper()
		sent++
		p.mustPost(e, badEvent(sent, at.Add(time.Duration(sent)*time.Second)))
		if found != "" {
			want = append(want, found)
		}
		eventually(t, "alerts", func() error {
			if n := p.metric("nightjar_rule_engine_events_total"); n < float64(sent-before) {
				return fmt.Errorf("%v events are looked at, want %d", n, sent-before)
			}
			var got []string
			for _, raw := range p.events(e, "alerts"+everything) {
				var a struct {
					Event struct{ GeneInfo struct{ Signature []string } }
				}
				if err := json.Unmarshal(raw, &a); err != nil {
					return err
				}
				got = append(got, strings.Join(a.Event.GeneInfo.Signature, "+"))
			}
			if !slices.Equal(got, want) {
				return fmt.Errorf("%q, want %q", got, want)
			}
			return nil
		})
	}
	post("")
	p.data(http.MethodPost, "/containers/badnames", "EVIL.exe\n")
	post("KnownBad")
	p.data(http.MethodPut, "/containers/arriving", "evil.exe")
	post("KnownBad+Waits")
	p.data(http.MethodDelete, "/containers/badnames", "")
	post("Waits")
	p.data(http.MethodDelete, "/containers/deleted", "")

	const million = 1_000_000
	var text strings.Builder
	for n := range million {
		fmt.Fprintf(&text, "%010d\n", n)
	}
	resident := p.memory("VmRSS:")
	for range 2 {
		var c struct{ Lines int }
		if err := json.Unmarshal(p.data(http.MethodPut, "/containers/million", text.String()), &c); err != nil || c.Lines != million {
			t.Fatalf("%d lines, %v", c.Lines, err)
		}
	}
	if resp, raw := p.raw("/containers/million?raw=true"); resp.StatusCode != http.StatusOK || string(raw) != text.String() {
		t.Errorf("%d, %d bytes of %d", resp.StatusCode, len(raw), text.Len())
	}
	var lines []string
	if err := json.Unmarshal(p.data(http.MethodGet, "/containers/million", ""), &lines); err != nil || len(lines) != million || lines[million-1] != fmt.Sprintf("%010d", million-1) {
		t.Errorf("%d lines, %v", len(lines), err)
	}
	// One million lines in use, a second million while it is replaced, and what
	// the garbage collector leaves.
	if grown := p.peak() - resident; grown > 1<<30 {
		t.Errorf("the process has grown by %d MiB", grown>>20)
	}
	if a, err := p.ask(http.MethodPost, "/containers/million", "one more\n"); err != nil || !strings.Contains(a.Error, "more than 1000000 lines") {
		t.Errorf("%+v, %v", a, err)
	}
	post("Waits")

	p.kill()
	p.run()
	var list []struct {
		Name  string
		Lines int
	}
	if err := json.Unmarshal(p.data(http.MethodGet, "/containers", ""), &list); err != nil || fmt.Sprint(list) != "[{arriving 1} {million 1000000}]" {
		t.Errorf("after a restart: %v, %v", list, err)
	}
	before = sent
	post("Waits")
	if log := p.log(); strings.Contains(strings.ToLower(log), "permissions violation") {
		t.Error("a service may not do on NATS what it has to")
	}
}
