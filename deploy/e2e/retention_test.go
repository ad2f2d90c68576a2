package e2e

import (
	"fmt"
	"io/fs"
	"net/http"
	"path/filepath"
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
