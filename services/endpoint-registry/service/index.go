package registry

import (
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
)

// errCursor means that a cursor was not made by this service.
var errCursor = errors.New("malformed cursor")

// endpoint is an endpoint's record with the revision it was written at.
type endpoint struct {
	Record   message.EndpointRecord `json:"record"`
	Revision uint64                 `json:"revision"`
}

// contacts are the last contacts of a partition's endpoints with the revision
// they were written at. The map is never changed, only replaced.
type contacts struct {
	Seen     map[string]message.Seen `json:"seen"`
	Revision uint64                  `json:"revision"`
}

// place is where an endpoint stands in the order of creation.
type place struct {
	created time.Time
	uuid    string
}

func comparePlaces(a, b place) int {
	return cmp.Or(a.created.Compare(b.created), strings.Compare(a.uuid, b.uuid))
}

// cursor returns a text from which parseCursor makes the same place.
func (p place) cursor() string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d.%d.%s", p.created.Unix(), p.created.Nanosecond(), p.uuid))
}

func parseCursor(s string) (place, error) {
	text, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return place{}, errCursor
	}
	parts := strings.SplitN(string(text), ".", 3)
	if len(parts) != 3 {
		return place{}, errCursor
	}
	sec, err1 := strconv.ParseInt(parts[0], 10, 64)
	nsec, err2 := strconv.ParseInt(parts[1], 10, 64)
	if err1 != nil || err2 != nil {
		return place{}, errCursor
	}
	return place{created: time.Unix(sec, nsec), uuid: parts[2]}, nil
}

// index holds the view in memory. It follows the store's commits.
type index struct {
	mu        sync.RWMutex
	endpoints map[string]endpoint
	order     []place
	contacts  [subject.Partitions]contacts
}

func newIndex() *index { return &index{endpoints: map[string]endpoint{}} }

// put sets an endpoint. The caller holds the lock.
func (x *index) put(e endpoint) {
	uuid := e.Record.UUID
	if old, ok := x.endpoints[uuid]; ok {
		if old.Record.Created.Equal(e.Record.Created) {
			x.endpoints[uuid] = e
			return
		}
		x.remove(uuid)
	}
	x.endpoints[uuid] = e
	p := place{created: e.Record.Created, uuid: uuid}
	i, _ := slices.BinarySearchFunc(x.order, p, comparePlaces)
	x.order = slices.Insert(x.order, i, p)
}

// remove takes an endpoint out. The caller holds the lock.
func (x *index) remove(uuid string) {
	old, ok := x.endpoints[uuid]
	if !ok {
		return
	}
	delete(x.endpoints, uuid)
	if i, ok := slices.BinarySearchFunc(x.order, place{created: old.Record.Created, uuid: uuid}, comparePlaces); ok {
		x.order = slices.Delete(x.order, i, i+1)
	}
}

// join returns an endpoint as it is shown. A contact from before the
// endpoint's creation was one of an earlier endpoint of the same uuid. The
// caller holds the lock.
func (x *index) join(e endpoint) message.Endpoint {
	out := message.Endpoint{UUID: e.Record.UUID, Key: e.Record.Key, Hostname: e.Record.Hostname}
	seen, ok := x.contacts[subject.PartitionOf(out.UUID)].Seen[out.UUID]
	if ok && !seen.Time.Before(e.Record.Created) {
		out.LastConnection, out.IP = seen.Time.UTC(), seen.IP
	}
	return out
}

// get returns an endpoint, its shown form and whether it exists.
func (x *index) get(uuid string) (endpoint, message.Endpoint, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	e, ok := x.endpoints[uuid]
	if !ok {
		return endpoint{}, message.Endpoint{}, false
	}
	return e, x.join(e), true
}

// size returns the number of endpoints.
func (x *index) size() int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.order)
}

// quiet returns how many endpoints were last heard of longer ago than each of
// quietAfter, and how many never.
func (x *index) quiet(now time.Time) (counts []int, unseen int) {
	counts = make([]int, len(quietAfter))
	x.mu.RLock()
	defer x.mu.RUnlock()
	for _, e := range x.endpoints {
		last := x.join(e).LastConnection
		if last.IsZero() {
			unseen++
			continue
		}
		for i, after := range quietAfter {
			if now.Sub(last) > after.time {
				counts[i]++
			}
		}
	}
	return counts, unseen
}

// page returns up to limit endpoints behind a place, in order of creation,
// with the cursor to go on from, empty at the end, and the number of all.
func (x *index) page(after place, limit int) message.ListReply {
	x.mu.RLock()
	defer x.mu.RUnlock()
	from, found := slices.BinarySearchFunc(x.order, after, comparePlaces)
	if found {
		from++
	}
	to := min(from+limit, len(x.order))
	reply := message.ListReply{Endpoints: make([]message.Endpoint, 0, to-from), Total: len(x.order)}
	for _, p := range x.order[from:to] {
		reply.Endpoints = append(reply.Endpoints, x.join(x.endpoints[p.uuid]))
	}
	if to < len(x.order) {
		reply.Next = x.order[to-1].cursor()
	}
	return reply
}

// nextCreated returns a time of creation behind every endpoint there is: now,
// or just after the last one where a clock runs behind another replica's.
func (x *index) nextCreated(now time.Time) time.Time {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if n := len(x.order); n > 0 && !now.After(x.order[n-1].created) {
		return x.order[n-1].created.Add(1)
	}
	return now
}

// merge returns the contacts of a partition with those of seen that are newer
// merged in, for endpoints that exist, and whether that changes anything.
// Entries of endpoints that are gone are left out.
func (x *index) merge(partition int, seen map[string]message.Seen) (merged contacts, changed bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	current := x.contacts[partition]
	merged = contacts{Seen: make(map[string]message.Seen, len(current.Seen)+len(seen)), Revision: current.Revision}
	for uuid, s := range current.Seen {
		if _, ok := x.endpoints[uuid]; ok {
			merged.Seen[uuid] = s
		}
	}
	for uuid, s := range seen {
		e, ok := x.endpoints[uuid]
		if ok && s.Time.After(merged.Seen[uuid].Time) && !s.Time.Before(e.Record.Created) {
			merged.Seen[uuid] = s
			changed = true
		}
	}
	return merged, changed
}
