package ingest

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
)

// sendIn is send after a removal of a generation.
func (r *rig) sendIn(generation uint64, endpoint string, lines ...string) {
	r.t.Helper()
	b := message.Batch{Endpoint: endpoint, Received: noon, Generation: generation}
	if _, err := r.bus.JS.PublishMsg(r.t.Context(), b.BatchMsg([]byte(strings.Join(lines, "\n")+"\n"), len(lines))); err != nil {
		r.t.Fatal(err)
	}
}

// record records a removal and returns its revision.
func (r *rig) record(endpoint string, generation uint64) uint64 {
	r.t.Helper()
	data, err := json.Marshal(message.RemovalRecord{Generation: generation})
	if err != nil {
		r.t.Fatal(err)
	}
	revision, err := natstest.Removed(r.t, r.bus).Put(r.t.Context(), endpoint, data)
	if err != nil {
		r.t.Fatal(err)
	}
	return revision
}

// In whatever order the record of a removal, what came before it, what was on
// its way and what came after it are learned of, the same is left: here the
// streams are not cleared, so that a store that is built anew folds all of it.
func TestRemovalInAnyOrder(t *testing.T) {
	const generation = 7
	before := []string{line(noon, 1), line(noon.Add(1), 2), `{"untimed":1}`}
	after := []string{before[0], `{"untimed":1}`, line(noon.Add(2), 3)}
	late := []string{line(noon.Add(1), 2), line(noon.Add(3), 4)}
	for name, steps := range map[string]func(r *rig){
		"record first": func(r *rig) {
			r.record(one, generation)
			r.settle()
			r.sendIn(0, one, late...)
			r.sendIn(generation, one, after...)
		},
		"record last": func(r *rig) {
			r.sendIn(generation, one, after...)
			r.sendIn(0, one, late...)
			r.settle()
			r.record(one, generation)
		},
		"record between": func(r *rig) {
			r.sendIn(0, one, late...)
			r.sendIn(generation, one, after[:1]...)
			r.settle()
			r.record(one, generation)
			r.settle()
			r.sendIn(generation, one, after...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.start()
			r.sendIn(0, one, before...)
			r.sendIn(0, two, before...)
			r.mark(one, before[1], noon, 5)
			r.settle()
			if n := len(r.ask(message.LogsRequest{Endpoint: one})); n != len(before) {
				t.Fatalf("%d events before the removal", n)
			}
			steps(r)
			r.settle()
			check := func(when string) {
				t.Helper()
				// A removal is known before it is obeyed, and its revision is the
				// view's position after that.
				ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
				defer cancel()
				if err := r.svc.removals.View().Sync(ctx); err != nil || r.svc.removals.Generation(one) != generation {
					t.Fatalf("%s: the removal is not obeyed, %v", when, err)
				}
				removed := r.svc.removals.View().Position()
				for endpoint, want := range map[string][]string{one: after, two: before} {
					got := r.ask(message.LogsRequest{Endpoint: endpoint, Removed: removed})
					slices.Sort(got)
					want = slices.Sorted(slices.Values(want))
					if !slices.Equal(got, want) {
						t.Errorf("%s: %s has\n%q\nwant\n%q", when, endpoint, got, want)
					}
					n, err := bus.Call[message.LogsCountReply](t.Context(), r.bus, subject.Logs(subject.PartitionOf(endpoint), message.LogsCount),
						message.LogsCountRequest{Endpoint: endpoint, Removed: removed})
					if err != nil || n.Events != int64(len(want)) || n.Alerts != 0 || n.Artifacts != 0 {
						t.Errorf("%s: counted %+v of %s, %v", when, n, endpoint, err)
					}
				}
				if got := r.ask(message.LogsRequest{Endpoint: one, Alerts: true, Removed: removed}); len(got) != 0 {
					t.Errorf("%s: alerts %q", when, got)
				}
			}
			check("as it runs")
			r.restart(false)
			r.settle()
			check("after a restart")
			r.restart(true)
			r.settle()
			check("built anew")
		})
	}
}
