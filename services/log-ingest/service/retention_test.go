package ingest

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
)

// hour lets each endpoint of a fleet send batches of events of an hour, and
// returns the sequence of the last one. Lines of different hours share no chunk.
func (f *fleet) hour(hour, endpoints, batches int) (last uint64) {
	f.r.t.Helper()
	for b := range batches {
		for e := range endpoints {
			name := fmt.Sprintf("%08x%s", e, one[8:])
			l := line(noon.Add(time.Duration(hour)*time.Hour), b)
			f.r.send(name, noon, l)
			f.want[name] = append(f.want[name], l)
		}
	}
	s, err := f.r.bus.JS.Stream(f.r.t.Context(), stream.Events)
	if err != nil {
		f.r.t.Fatal(err)
	}
	return s.CachedInfo().State.LastSeq
}

// Retention removes the oldest events while a replica builds partitions: what it
// has folded of them, has in hand and has not got to ends up in no store, and the
// replica has the same as one that was there all the time.
func TestRetentionWhileBuilding(t *testing.T) {
	const endpoints, batches = 12, 15
	for name, c := range map[string]struct {
		shards, ordinal int
		// away tells that the removal is while the replica that builds is away.
		away bool
	}{
		"a store built anew":           {1, 0, false},
		"a store built anew, and away": {1, 0, true},
		"partitions move":              {2, 1, false},
		"partitions move, and away":    {2, 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all := newRig(t)
			f := &fleet{r: all, want: map[string][]string{}}
			f.hour(0, endpoints, batches)
			all.become(1, 0)
			built := all.replica()
			built.become(c.shards, c.ordinal)
			if err := built.stop(); err != nil {
				t.Fatal(err)
			}
			// It is in the middle of it: there is more than it has folded.
			built.tamper(func(l *layout) { l.Pieces[0].Built = false })
			below := f.hour(1, endpoints, batches) + 1
			clear(f.want)
			f.hour(2, endpoints, batches)
			for e, lines := range f.want {
				f.want[e][1] = all.mark(e, lines[1], noon, 5)
			}
			remove := func() {
				t.Helper()
				if err := stream.Remove(t.Context(), all.bus.JS, stream.Events, below); err != nil {
					t.Fatal(err)
				}
			}
			var held, waits atomic.Bool
			built.room = func() error {
				if !held.Load() {
					return nil
				}
				waits.Store(true)
				return errors.New("held by the test")
			}
			if c.away {
				remove()
			}
			held.Store(!c.away)
			built.launch()
			if !c.away {
				built.eventually("messages are in hand", func() bool { return waits.Load() })
				remove()
				built.eventually("what was folded of the removed is dropped", func() bool { return built.metric("swept_entries_total") > 0 })
				held.Store(false)
			}
			built.eventually("it is built", func() bool { return built.svc.Ready() == nil })
			// It answers for what it has all of. The other one has answered all the
			// time, and shows what is sent up to a second later (pace).
			all.settle()
			same := func(when string) {
				t.Helper()
				for e, want := range f.want {
					var got []string
					all.eventually(when+": the retention has ended", func() (ended bool) {
						var err error
						got, err = f.ask(t.Context(), e)
						return err == nil && len(got) <= len(want)
					})
					if !slices.Equal(got, want) {
						t.Errorf("%s: %d lines of %s, want %d", when, len(got), e, len(want))
					}
				}
			}
			same("with both")
			if gap := built.metric("view_gap"); gap != 0 {
				t.Errorf("%v views report a gap", gap)
			}
			if missed := built.metric("view_missing_messages_total"); missed != endpoints*batches && c.shards == 1 {
				t.Errorf("%v messages are counted as not seen, want %d", missed, endpoints*batches)
			}
			if c.shards > 1 {
				all.become(2, 0)
				all.moved()
			} else if err := all.stop(); err != nil {
				t.Fatal(err)
			}
			same("built")
			built.restart(false)
			same("after a restart")
			if l := built.svc.holding.layout; len(l.Pieces) != 1 || !l.Pieces[0].Built {
				t.Errorf("the layout is %+v", l)
			}
		})
	}
}
