package scorer

import (
	"testing"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
)

// The service needs no more than its own rights, also when it reads alerts
// again.
func TestPermissions(t *testing.T) {
	own, all := natstest.Restricted(t, access.Scorer)
	natstest.Removed(t, all)
	if err := stream.Ensure(t.Context(), all.JS, stream.Alerts, stream.Limits{}); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, bus: all}
	s, _ := w.startOn(own, t.TempDir())
	first := w.raise(alpha, criticalities, "ten")
	w.folded(w.raise(alpha, criticalities, "four"), s)
	if err := s.clears.Wait(t.Context(), w.put(alpha, first)); err != nil {
		t.Fatal(err)
	}
	if r := w.get(alpha); r == nil || r.AlertCount != 1 {
		t.Errorf("report is %s", text(t, r))
	}
	if r := w.clear(alpha); r == nil || w.get(alpha) != nil {
		t.Errorf("cleared %s", text(t, r))
	}
	if err := own.NC.LastError(); err != nil {
		t.Errorf("the server refused something: %v", err)
	}
}
