package gateway

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
)

// TestHistory imports events and a file of an endpoint: they are stored as
// the agent's own, the import is on record, and the endpoint is not taken for
// one that has been heard of.
func TestHistory(t *testing.T) {
	var full atomic.Bool
	r := newRig(t, func(c *Config) {
		c.Full = func() error {
			if full.Load() {
				return errors.New("no room")
			}
			return nil
		}
	})
	r.ensureArtifacts()
	e := r.endpoint()
	path := "/endpoints/" + e.UUID
	file := func(content string) string {
		return fmt.Sprintf(`{"filename":"a.txt","guid":"{%s}","event-hash":"%s","content":"%s"}`, artifactGUID, artifactHash, base64.StdEncoding.EncodeToString([]byte(content)))
	}
	r.expect("POST", path+"/logs", "{\"n\":1}\n{ \"n\": 2.0 }\nno json\n", ok("null"))
	r.expect("POST", path+"/artifacts", file("first"), ok("null"))
	r.expect("POST", path+"/artifacts", file("first"), ok("null"))

	if lines, batches := r.events(e.UUID); !slices.Equal(lines, []string{`{"n":1}`, `{ "n": 2.0 }`}) || batches[0].Hostname != "" || batches[0].IP != "" {
		t.Errorf("stored %q of %+v", lines, batches)
	}
	if n := len(r.messages(stream.DeadLetters)); n != 1 {
		t.Errorf("%d dead letters, want 1", n)
	}
	if got := data[message.Endpoint](r, "GET", path, ""); !got.LastConnection.IsZero() || got.Hostname != "" || got.IP != "" {
		t.Errorf("an import looks like a sign of life: %+v", got)
	}

	// A bound hostname stands in what is imported.
	if a := r.agent(e, "GET", "/key", nil); a.code != 200 {
		t.Fatalf("agent: %d", a.code)
	}
	r.expect("POST", path+"/logs", `{"n":3}`, ok("null"))
	if _, batches := r.events(e.UUID); batches[len(batches)-1].Hostname != "WS-"+e.UUID[:4] {
		t.Errorf("hostname is %q", batches[len(batches)-1].Hostname)
	}

	for _, c := range []struct {
		what, path, body string
		code             int
	}{
		{"file that differs", path + "/artifacts", file("second"), 409},
		{"file of no form", path + "/artifacts", "no json", 500},
		{"name that leads out", path + "/artifacts", strings.Replace(file("x"), "a.txt", "../a", 1), 400},
	} {
		if a := r.admin("POST", c.path, c.body); a.code != c.code {
			t.Errorf("%s: %d %s, want %d", c.what, a.code, a.body, c.code)
		}
	}
	full.Store(true)
	for _, p := range []string{"/logs", "/artifacts"} {
		if a := r.admin("POST", path+p, file("x")); a.code != 503 || a.header.Get("Retry-After") == "" {
			t.Errorf("%s: %d %s, want 503 with Retry-After", p, a.code, a.body)
		}
	}
	full.Store(false)
	r.expect("POST", "/endpoints/"+someUUID+"/logs", "{}", nok("Unknown endpoint: "+someUUID))
	r.expect("POST", "/endpoints/"+someUUID+"/artifacts", file("x"), nok("Unknown endpoint: "+someUUID))
	if a := r.do("POST", r.svc.AdminAddr(), path+"/logs", bytes.NewReader([]byte("{}")), nil); a.code != 403 {
		t.Errorf("without a key: %d", a.code)
	}

	var actions []string
	for _, m := range r.messages(stream.Audit) {
		var a message.Audit
		if err := json.Unmarshal(m.Data, &a); err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(a.Action, "history.") {
			actions = append(actions, a.Action+" "+a.Outcome)
		}
	}
	if want := []string{"history.events ok", "history.artifact ok", "history.artifact ok", "history.events ok",
		"history.events Unknown endpoint: " + someUUID, "history.artifact Unknown endpoint: " + someUUID}; !slices.Equal(actions, want) {
		t.Errorf("on record is %q, want %q", actions, want)
	}
}
