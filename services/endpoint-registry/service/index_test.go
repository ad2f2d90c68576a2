package registry

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
)

var t0 = time.Date(2024, 5, 6, 7, 8, 9, 123456789, time.UTC)

func record(uuid string, created time.Time) endpoint {
	return endpoint{Record: message.EndpointRecord{UUID: uuid, Key: "k", Created: created}}
}

// A clock that stands still or runs behind does not change the order.
func TestNextCreated(t *testing.T) {
	x := newIndex()
	var want []string
	for i, now := range []time.Time{t0, t0, t0.Add(-time.Hour), t0.Add(time.Second), t0} {
		uuid := fmt.Sprint(9 - i) // not in the order of names
		want = append(want, uuid)
		x.put(record(uuid, x.nextCreated(now)))
	}
	var got []string
	for _, p := range x.order {
		got = append(got, p.uuid)
	}
	if !slices.Equal(got, want) {
		t.Errorf("order is %v, want %v", got, want)
	}
}

// An endpoint that was created anew stands in the order once, at its new
// place.
func TestPutAgain(t *testing.T) {
	x := newIndex()
	x.put(record("a", t0))
	x.put(record("b", t0.Add(1)))
	x.put(record("a", t0.Add(2)))
	renamed := record("b", t0.Add(1))
	renamed.Record.Hostname = "h"
	x.put(renamed)
	if len(x.order) != 2 || x.order[0].uuid != "b" || x.order[1].uuid != "a" || x.endpoints["b"].Record.Hostname != "h" {
		t.Errorf("order is %+v", x.order)
	}
	x.remove("c")
	x.remove("b")
	if len(x.order) != 1 || x.size() != 1 {
		t.Errorf("order is %+v", x.order)
	}
}

func TestMerge(t *testing.T) {
	const uuid = "a"
	p := subject.PartitionOf(uuid)
	at := func(d time.Duration) message.Seen { return message.Seen{Time: t0.Add(d), IP: d.String()} }
	for name, c := range map[string]struct {
		stored, reported map[string]message.Seen
		want             map[string]message.Seen
		changed          bool
	}{
		"first":              {nil, map[string]message.Seen{uuid: at(1)}, map[string]message.Seen{uuid: at(1)}, true},
		"newer":              {map[string]message.Seen{uuid: at(1)}, map[string]message.Seen{uuid: at(2)}, map[string]message.Seen{uuid: at(2)}, true},
		"same time":          {map[string]message.Seen{uuid: at(1)}, map[string]message.Seen{uuid: {Time: t0.Add(1)}}, map[string]message.Seen{uuid: at(1)}, false},
		"older":              {map[string]message.Seen{uuid: at(2)}, map[string]message.Seen{uuid: at(1)}, map[string]message.Seen{uuid: at(2)}, false},
		"before creation":    {nil, map[string]message.Seen{uuid: at(-1)}, map[string]message.Seen{}, false},
		"of nobody":          {nil, map[string]message.Seen{"b": at(1)}, map[string]message.Seen{}, false},
		"those gone go":      {map[string]message.Seen{"b": at(1)}, map[string]message.Seen{uuid: at(1)}, map[string]message.Seen{uuid: at(1)}, true},
		"of an earlier self": {map[string]message.Seen{uuid: at(-1)}, map[string]message.Seen{uuid: at(0)}, map[string]message.Seen{uuid: at(0)}, true},
	} {
		t.Run(name, func(t *testing.T) {
			x := newIndex()
			x.put(record(uuid, t0))
			x.contacts[p] = contacts{Seen: c.stored, Revision: 7}
			got, changed := x.merge(p, c.reported)
			if changed != c.changed || got.Revision != 7 || len(got.Seen) != len(c.want) || got.Seen[uuid] != c.want[uuid] {
				t.Errorf("got %+v, changed %v", got, changed)
			}
			if len(x.contacts[p].Seen) != len(c.stored) {
				t.Error("the stored contacts were changed")
			}
		})
	}
}

// An endpoint counts as quiet from the time on that is named, whatever its
// partition; one that was never heard of, or only before it was created anew,
// does not.
func TestQuiet(t *testing.T) {
	x := newIndex()
	now := t0.Add(30 * 24 * time.Hour)
	for name, silent := range map[string]time.Duration{
		"a": 0, "b": time.Hour, "c": time.Hour + 1, "d": 24 * time.Hour, "e": 25 * time.Hour, "f": 7 * 24 * time.Hour, "g": 8 * 24 * time.Hour,
		"reborn": 31 * 24 * time.Hour,
	} {
		x.put(record(name, t0))
		c := &x.contacts[subject.PartitionOf(name)]
		if c.Seen == nil {
			c.Seen = map[string]message.Seen{}
		}
		c.Seen[name] = message.Seen{Time: now.Add(-silent)}
	}
	x.put(record("never", t0))
	if counts, unseen := x.quiet(now); !slices.Equal(counts, []int{5, 3, 1}) || unseen != 2 {
		t.Errorf("%v quiet, %d never heard of", counts, unseen)
	}
}
