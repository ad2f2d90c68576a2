package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// streamBytes returns what the messages of a stream take on disk.
func (p *proc) streamBytes(name string) (sum int64) {
	p.t.Helper()
	dir := filepath.Join(p.dir, "nats", "jetstream", "$G", "streams", name, "msgs")
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".blk" {
			return nil // files come and go
		}
		if info, err := d.Info(); err == nil {
			sum += info.Size()
		}
		return nil
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return sum
}

// TestRetentionByAge keeps events for a moment and alerts for ever: old events
// are shown no more and their space in the stream is given back, alerts stay,
// and the views take the end of the events for no gap, also across a restart.
func TestRetentionByAge(t *testing.T) {
	p := start(t, t.TempDir(), "--retention-events", "8s", "--retention-alerts", "0")
	p.data(http.MethodPost, "/rules", testRule)
	e := p.enrol()
	base := time.Now().Add(-time.Hour)
	for b := range 5 {
		p.mustPost(e, batch(b, 400, base)...)
	}
	if n := p.streamBytes("EVENTS"); n == 0 {
		t.Fatal("nothing is stored")
	}
	gone := func() {
		t.Helper()
		eventually(t, "old events are gone", func() error {
			if n := len(p.events(e, "logs"+everything)); n > 0 {
				return fmt.Errorf("%d events", n)
			}
			if n := p.streamBytes("EVENTS"); n > 4096 {
				return fmt.Errorf("%d bytes", n)
			}
			return nil
		})
		if n := len(p.events(e, "alerts"+everything)); n != 5*40 {
			t.Errorf("%d alerts, want %d", n, 5*40)
		}
	}
	eventually(t, "alerts", func() error {
		if n := len(p.events(e, "alerts"+everything)); n != 5*40 {
			return fmt.Errorf("%d alerts", n)
		}
		return nil
	})
	gone()
	p.terminate()
	p.run() // waits until it is ready
	gone()
	for _, service := range []string{"log_ingest", "rule_engine"} {
		if n := p.metric("nightjar_" + service + "_view_gap"); n != 0 {
			t.Errorf("%s: %v views report a gap", service, n)
		}
	}
	p.mustPost(e, plainEvent(1, base))
	eventually(t, "a new event", func() error {
		if n := len(p.events(e, "logs"+everything)); n != 1 {
			return fmt.Errorf("%d events", n)
		}
		return nil
	})
}

// TestRetentionBySize keeps a few events and alerts: the oldest go, whoever
// looks at the views sees the newest without a hole, a store that is built anew
// agrees, and reports go on counting.
func TestRetentionBySize(t *testing.T) {
	p := start(t, t.TempDir(), "--retention-events-size", "12KiB", "--retention-alerts-size", "200KiB", "--merge-after", "50ms")
	p.data(http.MethodPost, "/rules", testRule)
	e := p.enrol()
	base := time.Now().Add(-time.Hour)
	const batches, size = 12, 400
	var all []string
	for b := range batches {
		lines := batch(b, size, base)
		p.mustPost(e, lines...)
		for _, l := range lines {
			all = append(all, number(t, l))
		}
	}
	newest := func(what string, all []string, least int) []string {
		t.Helper()
		var got []string
		eventually(t, what, func() error {
			got = got[:0]
			for _, l := range p.events(e, what+everything) {
				got = append(got, number(t, l))
			}
			if len(got) < least || len(got) == len(all) || !slices.Equal(got, all[len(all)-len(got):]) {
				return fmt.Errorf("%d of %d %s, from %v on", len(got), len(all), what, got[:min(1, len(got))])
			}
			return nil
		})
		return got
	}
	eventually(t, "events removed", func() error {
		if n := p.metric("nightjar_api_gateway_retention_removed_messages_total", `stream="EVENTS"`, `reason="size"`); n == 0 {
			return errors.New("none")
		}
		return nil
	})
	kept := newest("logs", all, size)
	eventually(t, "alerts counted", func() error {
		if n := p.metric("nightjar_rule_engine_alerts_total"); n != batches*size/10 {
			return fmt.Errorf("%v alerts", n)
		}
		return nil
	})
	report := p.data(http.MethodGet, "/endpoints/"+e.UUID+"/report", "")
	if !strings.Contains(string(report), fmt.Sprintf(`"alert-count":%d`, batches*size/10)) {
		t.Errorf("report %s", report)
	}
	p.terminate()
	if err := os.RemoveAll(filepath.Join(p.dir, "log-ingest")); err != nil {
		t.Fatal(err)
	}
	p.run() // waits until it is ready
	again := newest("logs", all, size)
	if len(again) > len(kept) {
		t.Errorf("%d events, %d before the store was built anew", len(again), len(kept))
	}
	for _, service := range []string{"log_ingest", "rule_engine", "report_scorer"} {
		if n := p.metric("nightjar_" + service + "_view_gap"); n != 0 {
			t.Errorf("%s: %v views report a gap", service, n)
		}
	}
	if n := len(p.events(e, "alerts"+everything)); n == 0 || n >= batches*size/10 {
		t.Errorf("%d alerts are kept of %d", n, batches*size/10)
	}
}

// number returns the number of an event that plainEvent or badEvent made.
func number(t *testing.T, line []byte) string {
	t.Helper()
	var e struct {
		Event struct{ EventData struct{ N string } }
	}
	if err := json.Unmarshal(line, &e); err != nil {
		t.Fatal(err)
	}
	return e.Event.EventData.N
}
