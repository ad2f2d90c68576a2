package target_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nightjar-edr/nightjar/services/siem-forwarder/internal/format"
	"github.com/nightjar-edr/nightjar/services/siem-forwarder/internal/target"
)

// endpoint is a real HTTPS server; do answers each request given its body.
func endpoint(t *testing.T, o target.Options, do func(w http.ResponseWriter, r *http.Request, body []byte)) target.Target {
	t.Helper()
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		do(w, r, body)
	}))
	t.Cleanup(s.Close)
	_, o.CAFile = certificate(t)
	o.TokenFile = filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(o.TokenFile, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o.Output = s.URL + o.Output
	return open(t, o)
}

func TestPlain(t *testing.T) {
	t.Parallel()
	for f, contentType := range map[format.Format]string{format.ECS: "application/x-ndjson", format.CEF: "text/plain; charset=utf-8"} {
		tg := endpoint(t, target.Options{Output: "/in", Webhook: target.Plain, Format: f}, func(w http.ResponseWriter, r *http.Request, body []byte) {
			if r.Method != http.MethodPost || r.URL.Path != "/in" || r.Header.Get("Authorization") != "Bearer secret" || r.Header.Get("Content-Type") != contentType {
				t.Errorf("%s %s %v", r.Method, r.URL, r.Header)
			}
			if want := string(records(2)[0].Body) + "\n" + string(records(2)[1].Body) + "\n"; string(body) != want {
				t.Errorf("body %q", body)
			}
			w.WriteHeader(http.StatusNoContent)
		})
		taken(t, tg.Send(t.Context(), records(2)), 2)
	}
}

// TestStatus holds which answers refuse an alert and which ask to come again:
// only what is surely about the alert refuses it.
func TestStatus(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		status  int
		after   string
		refused bool
		wait    time.Duration
	}{
		{400, "", true, 0}, {413, "", true, 0}, {422, "", true, 0},
		{301, "", false, 0}, {401, "", false, 0}, {403, "", false, 0}, {404, "", false, 0},
		{429, "7", false, 7 * time.Second}, {503, "100000000", false, 10 * time.Minute}, {503, "x", false, 0}, {500, "-5", false, 0},
	} {
		tg := endpoint(t, target.Options{Webhook: target.Plain}, func(w http.ResponseWriter, _ *http.Request, _ []byte) {
			w.Header().Set("Retry-After", c.after)
			w.WriteHeader(c.status)
		})
		err := tg.Send(t.Context(), records(1))[0]
		var refused *target.Refused
		var later *target.Later
		if errors.As(err, &refused) != c.refused || err == nil {
			t.Errorf("%d: %v", c.status, err)
		}
		if errors.As(err, &later); later != nil && later.After != c.wait {
			t.Errorf("%d %s: wait %s", c.status, c.after, later.After)
		}
	}
	gone := httptest.NewServer(nil)
	gone.Close()
	err := open(t, target.Options{Output: gone.URL, Webhook: target.Plain}).Send(t.Context(), records(1))[0]
	if refused := (*target.Refused)(nil); err == nil || errors.As(err, &refused) {
		t.Errorf("nobody there: %v", err)
	}
}

// TestHalves finds the one record that an endpoint refuses among many.
func TestHalves(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	got := map[string]bool{}
	tg := endpoint(t, target.Options{Webhook: target.Plain}, func(w http.ResponseWriter, _ *http.Request, body []byte) {
		if bytes.Contains(body, []byte(`"n":5,`)) {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		for line := range bytes.Lines(body) {
			got[string(line)] = true
		}
	})
	for i, err := range tg.Send(t.Context(), records(9)) {
		if refused := (*target.Refused)(nil); errors.As(err, &refused) != (i == 5) || (err == nil) != (i != 5) {
			t.Errorf("record %d: %v", i, err)
		}
	}
	if len(got) != 8 {
		t.Errorf("%d records arrived", len(got))
	}
}

// TestElastic speaks to a bulk API that knows one document already, cannot map
// one and has no room for one.
func TestElastic(t *testing.T) {
	t.Parallel()
	tg := endpoint(t, target.Options{Output: "/prefix/", Webhook: target.Elastic, Index: "logs-nightjar.alert-default"}, func(w http.ResponseWriter, r *http.Request, body []byte) {
		if r.URL.Path != "/prefix/_bulk" || r.Header.Get("Authorization") != "ApiKey secret" || r.Header.Get("Content-Type") != "application/x-ndjson" {
			t.Errorf("%s %v", r.URL, r.Header)
		}
		lines := strings.Split(strings.TrimSuffix(string(body), "\n"), "\n")
		for i, rec := range records(4) {
			if want := fmt.Sprintf(`{"create":{"_index":"logs-nightjar.alert-default","_id":"id-%d"}}`, i); lines[2*i] != want || lines[2*i+1] != string(rec.Body) {
				t.Errorf("lines %q %q", lines[2*i], lines[2*i+1])
			}
		}
		_, _ = io.WriteString(w, `{"errors":true,"items":[{"create":{"_id":"id-0","status":201}},{"create":{"_id":"id-1","status":409,"error":{"type":"version_conflict_engine_exception"}}},
			{"create":{"_id":"id-2","status":400,"error":{"type":"document_parsing_exception","reason":"no"}}},{"create":{"_id":"id-3","status":429,"error":{"type":"es_rejected_execution_exception"}}}]}`)
	})
	results := tg.Send(t.Context(), records(4))
	taken(t, results[:2], 2)
	var refused *target.Refused
	if !errors.As(results[2], &refused) || !strings.Contains(refused.Reason, "document_parsing_exception") {
		t.Errorf("a document that cannot be mapped: %v", results[2])
	}
	if refused = nil; results[3] == nil || errors.As(results[3], &refused) {
		t.Errorf("a document without room: %v", results[3])
	}
	for _, answer := range []string{``, `{}`, `{"items":[{"create":{"status":201}}]}`, `{"items":[{"index":{"status":201}},{"create":{"status":201}}]}`} {
		tg := endpoint(t, target.Options{Webhook: target.Elastic, Index: "i"}, func(w http.ResponseWriter, _ *http.Request, _ []byte) { _, _ = io.WriteString(w, answer) })
		if results := tg.Send(t.Context(), records(2)); results[0] == nil {
			t.Errorf("taken with the answer %q", answer)
		}
	}
}

// TestSplunk speaks to an event collector with and without acknowledgement.
func TestSplunk(t *testing.T) {
	t.Parallel()
	for _, f := range []format.Format{format.OCSF, format.CEF} {
		tg := endpoint(t, target.Options{Output: "/services/collector/event", Webhook: target.Splunk, Format: f}, func(w http.ResponseWriter, r *http.Request, body []byte) {
			if r.URL.Path != "/services/collector/event" || r.Header.Get("Authorization") != "Splunk secret" {
				t.Errorf("%s %v", r.URL, r.Header)
			}
			d := json.NewDecoder(bytes.NewReader(body))
			for _, rec := range records(2) {
				var e struct {
					Time                     json.Number
					Host, Source, Sourcetype string
					Event                    json.RawMessage
					Fields                   map[string]string
				}
				if err := d.Decode(&e); err != nil {
					t.Error(err)
				}
				want := string(rec.Body)
				if f == format.CEF {
					quoted, _ := json.Marshal(want)
					want = string(quoted)
				}
				if e.Time != "1741073400.000" || e.Host != "WS 01" || e.Sourcetype != "nightjar:"+string(f) || string(e.Event) != want ||
					e.Fields["nightjar_id"] != rec.ID || e.Fields["nightjar_severity"] != "critical" {
					t.Errorf("event %+v", e)
				}
			}
			_, _ = io.WriteString(w, `{"text":"Success","code":0}`)
		})
		taken(t, tg.Send(t.Context(), records(2)), 2)
	}
}

// TestSplunkAcknowledgement waits until Splunk says that it has indexed.
func TestSplunkAcknowledgement(t *testing.T) {
	t.Parallel()
	asked, channel := 0, ""
	tg := endpoint(t, target.Options{Output: "/services/collector/event", Webhook: target.Splunk}, func(w http.ResponseWriter, r *http.Request, body []byte) {
		switch r.URL.Path {
		case "/services/collector/event":
			if channel = r.Header.Get("X-Splunk-Request-Channel"); len(channel) != 36 {
				t.Errorf("channel %q", channel)
			}
			_, _ = io.WriteString(w, `{"text":"Success","code":0,"ackId":17}`)
		case "/services/collector/ack":
			if asked++; r.URL.Query().Get("channel") != channel || string(body) != `{"acks":[17]}` {
				t.Errorf("%s %s", r.URL, body)
			}
			_, _ = fmt.Fprintf(w, `{"acks":{"17":%t}}`, asked == 2)
		}
	})
	taken(t, tg.Send(t.Context(), records(3)), 3)
	if asked != 2 {
		t.Errorf("asked %d times", asked)
	}
	never := endpoint(t, target.Options{Webhook: target.Splunk, Timeout: time.Millisecond * 1500}, func(w http.ResponseWriter, _ *http.Request, _ []byte) {
		_, _ = io.WriteString(w, `{"code":0,"ackId":1,"acks":{"1":false}}`)
	})
	if err := never.Send(t.Context(), records(1))[0]; err == nil {
		t.Error("taken without acknowledgement")
	}
}

// TestSplunkCodes: of the answers 400, those that blame an event refuse it, and
// those that blame the set-up do not.
func TestSplunkCodes(t *testing.T) {
	t.Parallel()
	for code, want := range map[int]bool{6: true, 12: true, 13: true, 15: true, 5: false, 7: false, 10: false, 11: false} {
		tg := endpoint(t, target.Options{Webhook: target.Splunk}, func(w http.ResponseWriter, _ *http.Request, _ []byte) {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = fmt.Fprintf(w, `{"text":"x","code":%d}`, code)
		})
		err := tg.Send(t.Context(), records(1))[0]
		if refused := (*target.Refused)(nil); err == nil || errors.As(err, &refused) != want {
			t.Errorf("code %d: %v", code, err)
		}
	}
}
