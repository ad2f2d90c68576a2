package scorer

import (
	"os"
	"testing"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
)

// raiseIn is raise for an alert of a generation.
func (w *world) raiseIn(generation uint64, endpoint string, names ...string) uint64 {
	w.t.Helper()
	w.n++
	line := []byte(`{"Event":{}}`)
	at := t0.Add(time.Duration(w.n) * time.Second)
	a := message.Alert{Endpoint: endpoint, Received: t0, Time: at, Timed: true, Hash: event.HashOf([]byte{byte(w.n)}), Line: line,
		Signatures: names, Criticality: 10, Origin: message.OriginAgent, Generation: generation}
	return w.publish(a)
}

// In whatever order the record of a removal and alerts of both sides of it are
// learned of, the report is of those behind it, the census has the names that
// are left, other endpoints keep their reports, and a clear goes on from there.
// The stream is not cleared here, so that a store that is built anew folds all.
func TestRemovalInAnyOrder(t *testing.T) {
	const generation = 7
	record := func(w *world, services ...*Service) {
		w.t.Helper()
		kv := natstest.Removed(w.t, w.bus)
		revision, err := kv.PutString(w.t.Context(), alpha, text(w.t, message.RemovalRecord{Generation: generation}))
		if err != nil {
			w.t.Fatal(err)
		}
		for _, s := range services {
			if err := s.removals.Obeyed(w.t.Context(), revision); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	for name, steps := range map[string]func(w *world, s *Service){
		"record first": func(w *world, s *Service) {
			record(w, s)
			w.raiseIn(0, alpha, "late", "shared")
			w.folded(w.raiseIn(generation, alpha, "new", "shared"), s)
		},
		"record last": func(w *world, s *Service) {
			w.raiseIn(generation, alpha, "new", "shared")
			w.folded(w.raiseIn(0, alpha, "late", "shared"), s)
			record(w, s)
		},
		"in one group": func(w *world, s *Service) {
			var last uint64
			err := s.alerts.Exclusive(func() error {
				w.raiseIn(0, alpha, "late")
				w.raiseIn(generation, alpha, "new", "shared")
				last = w.raiseIn(0, alpha, "late", "shared")
				return nil
			})
			if err != nil {
				w.t.Fatal(err)
			}
			w.folded(last, s)
			record(w, s)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			dir := t.TempDir()
			s, stop := w.start(dir)
			w.raise(alpha, criticalities, "old")
			w.clear(alpha)
			w.raise(alpha, criticalities, "ten", "shared")
			w.raise(alpha, criticalities, "old")
			w.folded(w.raise(beta, criticalities, "shared", "other"), s)
			steps(w, s)
			check := func(when string, s *Service) {
				t.Helper()
				r := w.get(alpha)
				if r == nil || r.AlertCount != 1 || len(r.Signatures) != 2 || r.CountBySignature["new"] != 1 || r.CountBySignature["shared"] != 1 {
					t.Errorf("%s: report is %s", when, text(t, r))
				}
				// shared, new and other are left of shared, old, ten, late, new and other.
				if other := w.get(beta); other == nil || other.AlertCount != 1 || other.Diversity != 66.66 || r.Diversity != 66.66 {
					t.Errorf("%s: the other report is %s, this one's diversity %v", when, text(t, other), r.Diversity)
				}
			}
			check("as it runs", s)
			for _, when := range []string{"after a restart", "built anew"} {
				stop()
				if when == "built anew" {
					if err := os.RemoveAll(dir); err != nil {
						t.Fatal(err)
					}
				}
				s, stop = w.start(dir)
				check(when, s)
			}
			if r := w.clear(alpha); r == nil || r.AlertCount != 1 {
				t.Errorf("cleared is %s", text(t, r))
			}
			w.folded(w.raiseIn(generation, alpha, "new"), s)
			if r := w.get(alpha); r == nil || r.AlertCount != 1 || len(r.Signatures) != 1 {
				t.Errorf("after a clear the report is %s", text(t, r))
			}
		})
	}
}

// A removal without anything behind it leaves no report, at once.
func TestRemovedReport(t *testing.T) {
	w := newWorld(t)
	s, _ := w.start(t.TempDir())
	w.folded(w.raise(alpha, criticalities, "ten"), s)
	if w.get(alpha) == nil {
		t.Fatal("no report")
	}
	kv, err := w.bus.JS.KeyValue(t.Context(), stream.Removed)
	if err != nil {
		t.Fatal(err)
	}
	revision, err := kv.PutString(t.Context(), alpha, text(t, message.RemovalRecord{Generation: 1}))
	if err != nil {
		t.Fatal(err)
	}
	if r := ask[message.ReportReply](w, message.ReportsGet, message.ReportRequest{UUID: alpha, Removed: revision}).Report; r != nil {
		t.Errorf("report is %s", text(t, r))
	}
}
