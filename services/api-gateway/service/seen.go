package gateway

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/beat"
	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

const (
	// seenInterval is how often the registry is told of endpoints that it was not
	// told of lately, or that have another address; seenAgain of all that were
	// heard of. Each time costs syncs in JetStream and in the stores that follow
	// it, one for each partition.
	seenInterval = 5 * time.Second
	seenAgain    = 30 * time.Second
	// seenChunk is how many endpoints are told of at once.
	seenChunk = 2000
)

// lastSeen collects when this gateway heard of endpoints and tells the
// registry of it now and then. What is lost in a crash is half a minute of
// this, nothing else.
type lastSeen struct {
	bus   *bus.Bus
	log   *slog.Logger
	again time.Duration

	mu     sync.Mutex
	recent map[string]*contact
	// waiting tells that a contact is to be told soon.
	waiting bool
}

// contact is when an endpoint was heard of, and what the registry knows of it.
type contact struct {
	last, told message.Seen
	soon       bool
}

func newLastSeen(b *bus.Bus, log *slog.Logger, again time.Duration) *lastSeen {
	return &lastSeen{bus: b, log: log, again: again, recent: map[string]*contact{}}
}

// touch notes that an endpoint was heard of now.
func (l *lastSeen) touch(uuid, ip string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.recent[uuid]
	if c == nil {
		c = &contact{}
		l.recent[uuid] = c
	}
	c.last = message.Seen{Time: now, IP: ip}
	if ip != c.told.IP || now.Sub(c.told.Time) > 2*l.again {
		c.soon, l.waiting = true, true
	}
}

// forget drops what is known of a deleted endpoint.
func (l *lastSeen) forget(uuid string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.recent, uuid)
}

// overlay brings endpoints up to what this gateway knows and the registry may
// not have been told yet.
func (l *lastSeen) overlay(endpoints []message.Endpoint) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range endpoints {
		e := &endpoints[i]
		if c, ok := l.recent[e.UUID]; ok && c.last.Time.After(e.LastConnection) {
			e.LastConnection, e.IP = c.last.Time, c.last.IP
		}
	}
}

// run tells the registry at every interval, and once more when ctx ends.
func (l *lastSeen) run(ctx context.Context) {
	told := time.Now()
	for ctx.Err() == nil {
		_ = lifecycle.Sleep(ctx, beat.Next(seenInterval)) // ctx tells
		now := time.Now()
		all := ctx.Err() != nil || now.Sub(told) >= l.again-seenInterval/2
		// What has begun is finished even when ctx ends meanwhile.
		telling, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastTimeout)
		if l.flush(telling, all) && all {
			told = now
		}
		cancel()
	}
}

// flush tells the registry of all that it does not know, or of what it is to
// know soon, and returns whether it has taken that. What it has not is told the
// next time.
func (l *lastSeen) flush(ctx context.Context, all bool) bool {
	due := l.due(all)
	for chunk := range slices.Chunk(slices.Collect(maps.Keys(due)), seenChunk) {
		seen := make(map[string]message.Seen, len(chunk))
		for _, uuid := range chunk {
			seen[uuid] = due[uuid]
		}
		if _, err := bus.Call[message.RevisionReply](ctx, l.bus, message.RegistrySeen, message.SeenRequest{Seen: seen}); err != nil {
			l.log.Warn("registry was not told who was last seen, trying again later", "error", err)
			l.mu.Lock()
			defer l.mu.Unlock()
			l.waiting = true
			return false
		}
		l.known(seen)
	}
	return true
}

// due returns the contacts that the registry is to be told of.
func (l *lastSeen) due(all bool) map[string]message.Seen {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !all && !l.waiting {
		return nil
	}
	l.waiting = false
	due := map[string]message.Seen{}
	for uuid, c := range l.recent {
		if c.soon || all && c.last != c.told {
			due[uuid] = c.last
		}
	}
	return due
}

// known notes what the registry was told.
func (l *lastSeen) known(seen map[string]message.Seen) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for uuid, s := range seen {
		if c, ok := l.recent[uuid]; ok { // else deleted meanwhile
			c.told, c.soon = s, false
		}
	}
}
