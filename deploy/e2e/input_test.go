package e2e

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestBadSettings demands a clear error and the right exit code for each
// setting that cannot work.
func TestBadSettings(t *testing.T) {
	running := start(t, t.TempDir())
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, "x")
	config := filepath.Join(t.TempDir(), "config.yaml")
	write(t, config, "data-dir: x\nno-such-key: 1\n")
	rules := t.TempDir()
	write(t, filepath.Join(rules, "bad.gen"), `{"Name":"Good","Meta":{"EventIDs":[1],"Channels":["c"]},"Matches":["$a: Image = 'x'"],"Condition":"$a"}
{"Name":"TheBadRule","Meta":{"EventIDs":[1],"Channels":["c"]},"Matches":["$a: Image ~= '(x'"],"Condition":"$a"}`)
	free := func() []string {
		return []string{"--data-dir", t.TempDir(), "--admin-addr", "127.0.0.1:0", "--agent-addr", "127.0.0.1:0", "--nats-addr", "127.0.0.1:0", "--ops-addr", "127.0.0.1:0"}
	}
	for name, c := range map[string]struct {
		args []string
		code int
		says []string
	}{
		"unknown flag":         {[]string{"--no-such-flag"}, 2, []string{"no-such-flag"}},
		"unknown key":          {[]string{"--config", config}, 2, []string{"no-such-key"}},
		"missing config":       {[]string{"--config", file + ".yaml"}, 2, []string{file + ".yaml"}},
		"argument":             {[]string{"serve"}, 2, []string{`"serve"`}},
		"bad address":          {append(free(), "--admin-addr", "nonsense"), 2, []string{"admin-addr", "nonsense"}},
		"bad sync":             {append(free(), "--sync", "sometimes"), 2, []string{"sync", "always"}},
		"bad retention":        {append(free(), "--retention-events", "-3d"), 2, []string{"retention-events"}},
		"bad level":            {append(free(), "--log-level", "loud"), 2, []string{"loud"}},
		"bad siem":             {append(free(), "--siem", "a b"), 2, []string{"a b"}},
		"bad tls":              {append(free(), "--tls", "on"), 2, []string{"tls"}},
		"missing certificate":  {append(free(), "--tls", "no.pem,no.key"), 2, []string{"no.pem"}},
		"folder in use":        {append(free(), "--data-dir", running.dir), 1, []string{running.dir, "in use"}},
		"folder is a file":     {append(free(), "--data-dir", file), 1, []string{file}},
		"admin port taken":     {append(free(), "--admin-addr", taken.Addr().String()), 1, []string{taken.Addr().String(), "in use"}},
		"agent port taken":     {append(free(), "--agent-addr", taken.Addr().String()), 1, []string{taken.Addr().String(), "in use"}},
		"nats port taken":      {append(free(), "--nats-addr", taken.Addr().String()), 1, []string{taken.Addr().String(), "in use"}},
		"ops port taken":       {append(free(), "--ops-addr", taken.Addr().String()), 1, []string{taken.Addr().String(), "in use"}},
		"rules do not compile": {append(free(), "--rules-dir", rules), 2, []string{"bad.gen", "TheBadRule", "(x"}},
		"no rules folder":      {append(free(), "--rules-dir", file+"-none"), 2, []string{file + "-none"}},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), binary, c.args...)
			cmd.WaitDelay = time.Second
			timer := time.AfterFunc(deadline, func() { _ = cmd.Process.Kill() })
			defer timer.Stop()
			out, _ := cmd.CombinedOutput()
			if code := cmd.ProcessState.ExitCode(); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			for _, s := range c.says {
				if !strings.Contains(string(out), s) {
					t.Errorf("does not say %q", s)
				}
			}
			if t.Failed() || strings.Contains(string(out), "goroutine ") {
				t.Errorf("output:\n%s", out)
			}
		})
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestMalformedLines posts events between lines that are none: these become
// dead letters with their reason, and the rest is stored.
func TestMalformedLines(t *testing.T) {
	p := start(t, t.TempDir())
	e := p.enrol()
	now := time.Now().Add(-time.Minute)
	long := []byte(`{"a":"` + strings.Repeat("x", 5<<20) + `"}`)
	p.mustPost(e, plainEvent(1, now), []byte("no json"), []byte(""), []byte("[1]"), long, plainEvent(2, now.Add(time.Second)), []byte(`{"Event":`), []byte(`{"untimed":true}`))
	eventually(t, "stored", func() error {
		if n := len(p.events(e, "logs"+everything)); n != 3 {
			return fmt.Errorf("%d events, want 3", n)
		}
		return nil
	})
	for reason, want := range map[string]float64{"not-json": 2, "not-object": 1, "too-long": 1} {
		if got := p.metric("nightjar_dead_letters_total", `reason="`+reason+`"`); got != want {
			t.Errorf("%v dead letters %s, want %v", got, reason, want)
		}
	}
}

// TestRefusedRequests are the doors' own errors.
func TestRefusedRequests(t *testing.T) {
	p := start(t, t.TempDir())
	e := p.enrol()
	for path, want := range map[string]string{
		"/endpoints/00000000-1111-2222-3333-444444444444":                                               "Unknown endpoint: 00000000-1111-2222-3333-444444444444",
		"/endpoints/00000000-1111-2222-3333-444444444444/logs":                                          "Unknown endpoint: 00000000-1111-2222-3333-444444444444",
		"/endpoints/00000000-1111-2222-3333-444444444444/report":                                        "Unknown endpoint: 00000000-1111-2222-3333-444444444444",
		"/endpoints/" + e.UUID + "/logs?start=yesterday":                                                "Failed to parse start parameter, it must be RFC3339 formated",
		"/endpoints/" + e.UUID + "/alerts?stop=x":                                                       "Failed to parse stop parameter, it must be RFC3339 formated",
		"/endpoints/" + e.UUID + "/logs?pivot=x":                                                        "Failed to parse pivot parameter, it must be RFC3339 formated",
		"/endpoints/" + e.UUID + "/logs?delta=x":                                                        "Failed to parse delta parameter, it must be a valid Go time.Duration format",
		"/endpoints/" + e.UUID + "/logs?start=2021-03-03T12:00:00Z&stop=2021-03-03T11:00:00Z":           "Start date must be before stop date",
		"/endpoints/" + e.UUID + "/logs?start=2021-03-03T10:00:00Z&stop=2021-03-03T11:00:00Z&delta=10m": "Incompatible parameters, specify either start/stop or pivot/delta parameters",
	} {
		a, err := p.ask(http.MethodGet, path, "")
		if err != nil {
			t.Fatal(err)
		}
		if a.Error != want || a.Message != "NOK" || string(a.Data) != "null" {
			t.Errorf("%s: %+v", path, a)
		}
	}
	if a, err := p.ask(http.MethodGet, "/rules?name=%5B", ""); err != nil || a.Error == "" {
		t.Errorf("invalid regular expression: %+v %v", a, err)
	}
	stranger := e
	stranger.Key = "wrong"
	if code, err := p.post(stranger, false, plainEvent(1, time.Now())); err != nil || code != http.StatusForbidden {
		t.Errorf("a wrong key: %d %v", code, err)
	}
	if code, err := p.post(endpoint{}.with("00000000-0000-0000-0000-000000000000"), false, plainEvent(1, time.Now())); err != nil || code != http.StatusForbidden {
		t.Errorf("no credentials: %d %v", code, err)
	}
	p.data(http.MethodDelete, "/endpoints/"+e.UUID, "")
	if code, err := p.post(e, false, plainEvent(1, time.Now())); err != nil || code != http.StatusForbidden {
		t.Errorf("a deleted endpoint: %d %v", code, err)
	}
}

func (e endpoint) with(uuid string) endpoint { e.UUID = uuid; return e }
