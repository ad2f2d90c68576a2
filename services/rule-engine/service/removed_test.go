package ruleengine

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
)

// sendIn is send after a removal of a generation.
func (r *rig) sendIn(generation uint64, endpoint string, lines ...string) {
	r.t.Helper()
	b := batch(endpoint, lines...)
	b.Generation = generation
	if _, err := r.bus.JS.PublishMsg(r.t.Context(), b.BatchMsg([]byte(strings.Join(lines, "\n")+"\n"), len(lines))); err != nil {
		r.t.Fatal(err)
	}
}

// generations returns the generations of an endpoint's alerts in the stream.
func (r *rig) generations(endpoint string) (list []uint64) {
	r.t.Helper()
	for _, a := range r.alerts() {
		if a.Endpoint == endpoint {
			list = append(list, a.Generation)
		}
	}
	slices.Sort(list)
	return list
}

// Of events from before a removal no alert is raised, those that were raised
// leave the stream, and the same event sent afterwards raises a new one, once;
// also with a store that is built anew.
func TestRemoval(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	x := r.start(cfg)
	x.mustAdd(false, rule("evil", "evil", 5, ""))
	r.send(endpointA, event4(1, "evil.exe"))
	r.send(endpointB, event4(1, "evil.exe"))
	if got := r.generations(endpointA); !slices.Equal(got, []uint64{0}) {
		t.Fatalf("alerts %v before the removal", got)
	}
	ends := map[string]uint64{stream.Alerts: 2}
	data, err := json.Marshal(message.RemovalRecord{Generation: 7, Ends: ends})
	if err != nil {
		t.Fatal(err)
	}
	revision, err := natstest.Removed(t, r.bus).Put(t.Context(), endpointA, data)
	if err != nil {
		t.Fatal(err)
	}
	call[struct{}](t, r.bus, message.AlertsCleared, message.ClearedRequest{Endpoint: endpointA, Revision: revision})
	if got := r.generations(endpointA); len(got) != 0 {
		t.Errorf("alerts %v are left", got)
	}
	check := func(when string, want ...uint64) {
		t.Helper()
		r.sendIn(0, endpointA, event4(2, "evil.exe"), event4(5, when))
		r.sendIn(7, endpointA, event4(1, "evil.exe"), event4(3, "fine.exe"))
		r.sendIn(7, endpointA, event4(1, "evil.exe"))
		if got := r.generations(endpointA); !slices.Equal(got, want) {
			t.Errorf("%s: alerts %v, want %v", when, got, want)
		}
		if got := r.generations(endpointB); len(got) != 1 {
			t.Errorf("%s: of another endpoint alerts %v", when, got)
		}
	}
	check("as it runs", 7)
	if n := x.value("nightjar_rule_engine_removed_batches_total"); n != 1 {
		t.Errorf("%v batches are counted as removed", n)
	}
	x.stop()
	if err := os.RemoveAll(cfg.DataDir); err != nil {
		t.Fatal(err)
	}
	cfg.Bus, cfg.Metrics = r.config().Bus, r.config().Metrics
	r.start(cfg)
	r.sendIn(7, endpointA, event4(1, "evil.exe"), event4(4, "fine.exe"))
	check("built anew", 7)
}
