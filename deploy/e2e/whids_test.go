package e2e

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// whidsManager is the configuration of a manager with two operators and three
// endpoints, whose rules stand in a folder beside it.
const whidsManager = `rules-dir = "database/rules"
dump-dir = "database/dumps"
containers-dir = "database/containers"

[admin-api]
  host = "localhost"
  port = 1520

  [[admin-api.users]]
    identifier = "lena@example.com"
    key = "key of lena"

  [[admin-api.users]]
    identifier = "pipeline"
    key = "key of pipeline"

[endpoint-api]
  host = "0.0.0.0"
  port = 1519
  server-key = "the key of the old manager"

  [[endpoint-api.endpoints]]
    uuid = "ffffffff-1111-0000-0000-000000000001"
    key = "key of the first"

  [[endpoint-api.endpoints]]
    uuid = "00000000-2222-0000-0000-000000000002"
    key = "key of the second"

  [[endpoint-api.endpoints]]
    uuid = "88888888-3333-0000-0000-000000000003"
    key = "key of the third"

[logging]
  root = "database/logs"
  enable-endpoint-logging = true
`

var whidsEndpoints = []endpoint{
	{UUID: "ffffffff-1111-0000-0000-000000000001", Key: "key of the first"},
	{UUID: "00000000-2222-0000-0000-000000000002", Key: "key of the second"},
	{UUID: "88888888-3333-0000-0000-000000000003", Key: "key of the third"},
}

// statusFor asks the admin API with an operator's key.
func (p *proc) statusFor(key string) int {
	p.t.Helper()
	req, err := http.NewRequest(http.MethodGet, p.admin+"/stats", nil)
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set("Api-Key", key)
	resp, err := p.client.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// listed returns the endpoints as uuid and key, in the order of the admin API.
func (p *proc) listed() (list []endpoint) {
	p.t.Helper()
	if err := json.Unmarshal(p.data(http.MethodGet, "/endpoints", ""), &list); err != nil {
		p.t.Fatal(err)
	}
	for i, e := range list {
		list[i] = endpoint{UUID: e.UUID, Key: e.Key}
	}
	return list
}

// ruleNames returns the names of the rules, sorted as the admin API has them.
func (p *proc) ruleNames() (names []string) {
	p.t.Helper()
	var list []struct{ Name string }
	if err := json.Unmarshal(p.data(http.MethodGet, "/rules", ""), &list); err != nil {
		p.t.Fatal(err)
	}
	for _, r := range list {
		names = append(names, r.Name)
	}
	return names
}

// TestImportWHIDS takes over another manager: its agents and operators go on
// with the credentials they have, and what happens to them in Nightjar
// outlives every start with the same file.
func TestImportWHIDS(t *testing.T) {
	old, dir, own := t.TempDir(), t.TempDir(), t.TempDir()
	file := filepath.Join(old, "manager.toml")
	write(t, file, whidsManager)
	for _, sub := range []string{"rules", "containers"} {
		if err := os.MkdirAll(filepath.Join(old, "database", sub), 0o750); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(old, "database", "rules", "all.gen"), containerRule("KnownBad", "badnames")+"\n"+ruleOf("Old", 3, "", "")+"\n"+ruleOf("Both", 3, "", "")+"\n")
	write(t, filepath.Join(old, "database", "containers", "badnames.txt"), "evil.exe\n")
	write(t, filepath.Join(own, "own.gen"), ruleOf("Both", 9, "", "")+"\n"+ruleOf("Own", 3, "", "")+"\n")
	p := start(t, dir, "--import-whids", file, "--rules-dir", own)

	if got := p.listed(); !slices.Equal(got, whidsEndpoints) {
		t.Fatalf("endpoints are %+v, want %+v", got, whidsEndpoints)
	}
	for key, want := range map[string]int{"key of lena": 200, "key of pipeline": 200, adminKey: 200, "another key": 403} {
		if got := p.statusFor(key); got != want {
			t.Errorf("operator's key %q is answered with %d, want %d", key, got, want)
		}
	}
	if got, want := p.ruleNames(), []string{"Both", "KnownBad", "Old", "Own"}; !slices.Equal(got, want) {
		t.Errorf("rules are %q, want %q", got, want)
	}
	var both []struct{ Meta struct{ Criticality int } }
	if err := json.Unmarshal(p.data(http.MethodGet, "/rules?name=^Both$", ""), &both); err != nil || len(both) != 1 || both[0].Meta.Criticality != 9 {
		t.Errorf("of two rules of a name, %+v is live, %v; want the one of --rules-dir", both, err)
	}

	at := time.Now().Add(-time.Minute)
	first, second, third := whidsEndpoints[0], whidsEndpoints[1], whidsEndpoints[2]
	agentsWork := func(n int, list ...endpoint) {
		t.Helper()
		for _, e := range list {
			if text, err := p.getOK(e, "/key"); err != nil || text != "the key of the old manager" {
				t.Errorf("%s: server key is %q, %v", e.UUID, text, err)
			}
			p.mustPost(e, badEvent(n, at.Add(time.Duration(n)*time.Second)))
			eventually(t, "alerts", func() error {
				if got := len(p.events(e, "alerts"+everything)); got != n {
					return errors.New("not all alerts are there")
				}
				return nil
			})
		}
	}
	agentsWork(1, first, second, third)

	// What is deleted here stays so, whatever the file says.
	p.data(http.MethodDelete, "/endpoints/"+second.UUID, "")
	p.data(http.MethodDelete, "/rules?name=Old", "")
	p.data(http.MethodGet, "/rules/reload", "")
	added := p.enrol()
	left := []endpoint{first, third, {UUID: added.UUID, Key: added.Key}}
	for n, end := range []func(){p.terminate, p.kill} {
		end()
		p.run()
		if got := p.listed(); !slices.Equal(got, left) {
			t.Errorf("start %d: endpoints are %+v, want %+v", n+2, got, left)
		}
		if got, want := p.ruleNames(), []string{"Both", "KnownBad", "Own"}; !slices.Equal(got, want) {
			t.Errorf("start %d: rules are %q, want %q", n+2, got, want)
		}
		if code, _, err := p.get(second, "/key"); err != nil || code != http.StatusForbidden {
			t.Errorf("start %d: a deleted endpoint is answered with %d, %v", n+2, code, err)
		}
		if got := p.statusFor("key of lena"); got != 200 {
			t.Errorf("start %d: an operator is answered with %d", n+2, got)
		}
		agentsWork(n+2, first, third)
	}

	// The flag wins, and without the file everything stays.
	p.terminate()
	p.args = []string{"--server-key", "chosen"}
	p.run()
	if text, err := p.getOK(first, "/key"); err != nil || text != "chosen" {
		t.Errorf("server key is %q, %v", text, err)
	}
	if got := p.listed(); !slices.Equal(got, left) {
		t.Errorf("without the file: endpoints are %+v, want %+v", got, left)
	}
	p.terminate()
	p.args = []string{"--server-key", "chosen", "--import-whids", file}
	p.run()
	if text, err := p.getOK(first, "/key"); err != nil || text != "chosen" {
		t.Errorf("server key is %q, %v", text, err)
	}
	p.terminate()

	write(t, file, strings.Replace(whidsManager, first.Key, "key of somebody else", 1))
	refuses(t, dir, file, first.UUID)
}

// refuses starts a standalone that must end with the exit code of a bad
// configuration and a message on what is wrong.
func refuses(t *testing.T, dir, file, want string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, "--data-dir", dir, "--admin-addr", "127.0.0.1:0", "--agent-addr", "127.0.0.1:0",
		"--nats-addr", "off", "--ops-addr", "127.0.0.1:0", "--import-whids", file, "--log-format", "text", "--log-level", "error")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 2 {
		t.Fatalf("ended with %v, want exit code 2\n%s", err, out)
	}
	if !strings.Contains(string(out), want) {
		t.Errorf("does not tell of %q:\n%s", want, out)
	}
	if strings.Contains(string(out), "key of") {
		t.Errorf("shows a key:\n%s", out)
	}
}

func TestImportWHIDSRefuses(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"no TOML":           {"[endpoint-api\nserver-key = \"key of\"", "manager.toml: line 1"},
		"another's file":    {"[forwarder]\nhost = \"h\"\n", "not the configuration of a WHIDS manager"},
		"key without value": {"[endpoint-api]\n[[endpoint-api.endpoints]]\nuuid = \"ffffffff-1111-0000-0000-000000000001\"\n", "key: missing"},
		"uuid of no form":   {"[endpoint-api]\n[[endpoint-api.endpoints]]\nuuid = \"x\"\nkey = \"key of\"\n", `"x"`},
		"two keys": {"[endpoint-api]\n" + "[[endpoint-api.endpoints]]\nuuid = \"ffffffff-1111-0000-0000-000000000001\"\nkey = \"key of 1\"\n" +
			"[[endpoint-api.endpoints]]\nuuid = \"ffffffff-1111-0000-0000-000000000001\"\nkey = \"key of 2\"\n", "ffffffff-1111-0000-0000-000000000001"},
		"rules that do not compile": {"rules-dir = \"rules\"\n[admin-api]\n", "broken.gen"},
	} {
		t.Run(name, func(t *testing.T) {
			old := t.TempDir()
			file := filepath.Join(old, "manager.toml")
			write(t, file, c.text)
			if err := os.Mkdir(filepath.Join(old, "rules"), 0o750); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(old, "rules", "broken.gen"), strings.Replace(testRule, "(?i:", "((?i:", 1))
			refuses(t, t.TempDir(), file, c.want)
		})
	}
	t.Run("missing", func(t *testing.T) {
		refuses(t, t.TempDir(), filepath.Join(t.TempDir(), "manager.toml"), "no such file or directory")
	})
}
