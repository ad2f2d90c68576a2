package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// counts is the answer to a removal.
type counts struct {
	Events      int `json:"events"`
	Alerts      int `json:"alerts"`
	DeadLetters int `json:"dead-letters"`
	Artifacts   int `json:"artifacts"`
	Reports     int `json:"reports"`
}

// removeStored removes what an endpoint has stored.
func (p *proc) removeStored(e endpoint) (c counts) {
	p.t.Helper()
	if err := json.Unmarshal(p.data(http.MethodDelete, "/endpoints/"+e.UUID+"/stored", ""), &c); err != nil {
		p.t.Fatal(err)
	}
	return c
}

// hasNothing demands that nothing is shown of what an endpoint had stored.
func (p *proc) hasNothing(when string, e endpoint) {
	p.t.Helper()
	for path, want := range map[string]string{
		"/logs" + everything: `[]`, "/alerts" + everything: `[]`, "/artifacts": `[]`, "/report": `null`,
	} {
		if got := p.data(http.MethodGet, "/endpoints/"+e.UUID+path, ""); string(got) != want {
			p.t.Errorf("%s: GET %s: %.300s", when, path, got)
		}
	}
	if a, err := p.ask(http.MethodGet, "/endpoints/"+e.UUID+"/artifacts/"+processGUID+"/"+eventHash+"/dump.bin", ""); err != nil || a.Error != "File not found" {
		p.t.Errorf("%s: a removed file is answered with %.100s %q, %v", when, a.Data, a.Error, err)
	}
}

// left returns how many messages of an endpoint each stream holds, and the
// audit records of an action. The program must not run.
func (p *proc) left(e endpoint, action string) (held map[string]uint64, audited int) {
	p.t.Helper()
	js, end := p.record()
	defer end()
	held = map[string]uint64{}
	for name, filter := range map[string]string{"EVENTS": "edr.events.*." + e.UUID, "ALERTS": "edr.alerts.*." + e.UUID, "DEADLETTER": "edr.deadletter.*." + e.UUID} {
		s, err := js.Stream(p.t.Context(), name)
		if err != nil {
			p.t.Fatal(err)
		}
		info, err := s.Info(p.t.Context(), jetstream.WithSubjectFilter(filter))
		if err != nil {
			p.t.Fatal(err)
		}
		for _, n := range info.State.Subjects {
			held[name] += n
		}
	}
	objects, err := js.ObjectStore(p.t.Context(), "artifacts")
	if err != nil {
		p.t.Fatal(err)
	}
	list, err := objects.List(p.t.Context(), jetstream.ListObjectsShowDeleted())
	if err != nil && !errors.Is(err, jetstream.ErrNoObjectsFound) {
		p.t.Fatal(err)
	}
	for _, o := range list {
		if strings.HasPrefix(o.Name, e.UUID) {
			held["artifacts"]++
		}
	}
	audit, err := js.Stream(p.t.Context(), "AUDIT")
	if err != nil {
		p.t.Fatal(err)
	}
	for seq := uint64(1); seq <= audit.CachedInfo().State.LastSeq; seq++ {
		m, err := audit.GetMsg(p.t.Context(), seq)
		if err != nil {
			p.t.Fatal(err)
		}
		if bytes.Contains(m.Data, []byte(action)) && bytes.Contains(m.Data, []byte(e.UUID)) {
			audited++
		}
	}
	return held, audited
}

// siemCount returns how many of the alerts that the SIEM has not fetched are of
// an endpoint, and how many are of others.
func (p *proc) siemCount(e endpoint) (own, others int) {
	p.t.Helper()
	for _, m := range p.alerts() {
		if strings.HasSuffix(m.Subject(), e.UUID) {
			own++
		} else {
			others++
		}
	}
	return own, others
}

// TestRemoval removes for good what an endpoint has stored: nothing of it is
// left anywhere, nothing of others is touched, what the endpoint sends
// afterwards is new, even when it is the same, and views that are built anew
// show the same.
func TestRemoval(t *testing.T) {
	t.Parallel()
	p := start(t, t.TempDir(), "--tls", "off")
	endpoints := p.fill()
	e, others := endpoints[0], endpoints[1:]
	before, err := p.snapshot(others...)
	if err != nil {
		t.Fatal(err)
	}
	delete(before, "/endpoints/reports")
	at := time.Now().Add(-10 * time.Minute)
	lines := [][]byte{badEvent(500, at), plainEvent(501, at), markedEvent(502, at, "OnlyHere"), []byte("not json")}
	p.mustPost(e, lines...)
	p.reportIs(e, filledAlerts+2, `{}`)
	dump := artifact{Filename: "dump.bin", Content: bytes.Repeat([]byte{0, 7}, 200<<10)}

	if got, want := p.removeStored(e), (counts{Events: 63, Alerts: filledAlerts + 2, DeadLetters: 1, Artifacts: 2, Reports: 1}); got != want {
		t.Errorf("removed %+v, want %+v", got, want)
	}
	p.hasNothing("after the removal", e)
	p.shows("of other endpoints", before, others...)
	if own, foreign := p.siemCount(e); own != 0 || foreign != 2*filledAlerts+1 {
		t.Errorf("the SIEM gets %d alerts of the endpoint and %d of others", own, foreign)
	}
	if got := p.removeStored(e); got != (counts{}) {
		t.Errorf("removed again %+v", got)
	}

	// The same once more, at once: it is new.
	p.mustPost(e, lines...)
	p.mustSend(e, dump)
	p.reportIs(e, 2, `{}`)
	eventually(t, "what was sent afterwards", func() error {
		if all, alerts, files := len(p.events(e, "logs"+everything)), len(p.events(e, "alerts"+everything)), len(p.artifacts(e, "")); all != 3 || alerts != 2 || files != 1 {
			return fmt.Errorf("%d events, %d alerts, %d artifacts", all, alerts, files)
		}
		return nil
	})
	p.mustPost(e, lines[0], plainEvent(503, at))
	eventually(t, "a repetition among what was sent afterwards", func() error {
		if n := len(p.events(e, "logs"+everything)); n != 4 {
			return fmt.Errorf("%d events", n)
		}
		return nil
	})
	if own, foreign := p.siemCount(e); own != 2 || foreign != 0 {
		t.Errorf("afterwards the SIEM gets %d alerts of the endpoint and %d of others", own, foreign)
	}
	if before, err = p.snapshot(endpoints...); err != nil {
		t.Fatal(err)
	}
	p.terminate()
	p.run()
	p.shows("after a restart", before, endpoints...)
	for _, store := range stores {
		p.kill()
		p.remove(store)
		p.run()
		p.shows("without store "+store, before, endpoints...)
	}
	p.showsAnew(before, endpoints...)
	if own, foreign := p.siemCount(e); own != 0 || foreign != 0 {
		t.Errorf("at the end the SIEM gets %d alerts of the endpoint and %d of others", own, foreign)
	}

	// An endpoint that is deleted, and one that never was.
	p.data(http.MethodDelete, "/endpoints/"+e.UUID, "")
	if got := p.removeStored(e); got != (counts{Events: 4, Alerts: 2, DeadLetters: 1, Artifacts: 1, Reports: 1}) {
		t.Errorf("of the deleted endpoint removed %+v", got)
	}
	p.hasNothing("of the deleted endpoint", e)
	if a, err := p.ask(http.MethodDelete, "/endpoints/00000000-0000-0000-0000-000000000000/stored", ""); err != nil || !strings.HasPrefix(a.Error, "Unknown endpoint") {
		t.Errorf("of an unknown endpoint: %+v, %v", a, err)
	}
	p.terminate()
	if log := p.log(); strings.Contains(log, "deleted from within") || strings.Contains(log, "stands still") {
		t.Error("a view took what was removed for a loss")
	}
	if held, audited := p.left(e, "stored.delete"); len(held) > 0 || audited != 3 {
		t.Errorf("the streams hold %v of the endpoint, and %d audit records", held, audited)
	}
	if held, _ := p.left(others[0], "stored.delete"); held["EVENTS"] == 0 || held["ALERTS"] != filledAlerts+1 || held["artifacts"] != 2 {
		t.Errorf("of another endpoint the streams hold %v", held)
	}
}

// What is removed while a service is away, from the head of the streams and
// from within, is no gap to it when it comes back.
func TestRemovalIsNoGap(t *testing.T) {
	t.Parallel()
	p := start(t, t.TempDir(), "--tls", "off")
	p.data(http.MethodPost, "/rules", testRule)
	e, other := p.enrol(), p.enrol()
	at := time.Now().Add(-time.Hour)
	p.mustPost(e, badEvent(1, at))
	eventually(t, "the alert", func() error {
		if n := len(p.events(e, "alerts"+everything)); n != 1 {
			return fmt.Errorf("%d alerts", n)
		}
		return nil
	})
	p.terminate()
	behind := map[string]string{}
	for _, store := range []string{"log-ingest", "report-scorer", "rule-engine"} {
		behind[store] = p.copyStore(store)
	}
	p.run()
	for i := range 5 {
		p.mustPost(e, badEvent(10+i, at), plainEvent(20+i, at))
	}
	p.mustPost(other, badEvent(30, at))
	p.mustPost(e, badEvent(40, at))
	p.mustPost(other, badEvent(50, at))
	p.reportIs(other, 2, `{}`)
	p.removeStored(e)
	p.mustPost(e, badEvent(10, at))
	p.reportIs(e, 1, `{}`)
	eventually(t, "the event with its detection", func() error {
		if all, alerts, elsewhere := len(p.events(e, "logs"+everything)), len(p.events(e, "alerts"+everything)), len(p.events(other, "alerts"+everything)); all != 1 || alerts != 1 || elsewhere != 2 {
			return fmt.Errorf("%d events, %d alerts, %d of another endpoint", all, alerts, elsewhere)
		}
		return nil
	})
	before, err := p.snapshot(e, other)
	if err != nil {
		t.Fatal(err)
	}
	p.terminate()
	for store, dir := range behind {
		p.remove(store)
		p.putStore(store, dir)
	}
	p.run()
	p.shows("after services come back that were away", before, e, other)
	if n := p.metric("nightjar_log_ingest_view_missing_messages_total") + p.metric("nightjar_log_ingest_view_gap"); n != 0 {
		t.Error("log-ingest took what was removed for a loss")
	}
}

// copyStore copies a store and returns the folder of the copy. The program must
// not run.
func (p *proc) copyStore(store string) string {
	p.t.Helper()
	dir := filepath.Join(p.t.TempDir(), store)
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(p.dir, store))); err != nil {
		p.t.Fatal(err)
	}
	return dir
}

// putStore brings a store back that copyStore copied.
func (p *proc) putStore(store, dir string) {
	p.t.Helper()
	if err := os.CopyFS(filepath.Join(p.dir, store), os.DirFS(dir)); err != nil {
		p.t.Fatal(err)
	}
}
