package gateway

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
)

// How often, and with how many endpoints at once, the registry is told of who
// was heard of.
const (
	seenInterval = 5 * time.Second
	seenChunk    = 2000
)

// lastSeen collects when this gateway heard of endpoints and tells the
// registry of it now and then. What is lost in a crash is a few seconds of
// this, nothing else.
type lastSeen struct {
	bus *bus.Bus
	log *slog.Logger

	mu     sync.Mutex
	recent map[string]message.Seen
	dirty  map[string]message.Seen
}

func newLastSeen(b *bus.Bus, log *slog.Logger) *lastSeen {
	return &lastSeen{bus: b, log: log, recent: map[string]message.Seen{}, dirty: map[string]message.Seen{}}
}

// touch notes that an endpoint was heard of now.
func (l *lastSeen) touch(uuid, ip string, now time.Time) {
	s := message.Seen{Time: now, IP: ip}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.recent[uuid], l.dirty[uuid] = s, s
}

// forget drops what is known of a deleted endpoint.
func (l *lastSeen) forget(uuid string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.recent, uuid)
	delete(l.dirty, uuid)
}

// overlay brings endpoints up to what this gateway knows and the registry may
// not have been told yet.
func (l *lastSeen) overlay(endpoints []message.Endpoint) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range endpoints {
		e := &endpoints[i]
		if s, ok := l.recent[e.UUID]; ok && s.Time.After(e.LastConnection) {
			e.LastConnection, e.IP = s.Time, s.IP
		}
	}
}

// run tells the registry at every interval, and once more when ctx ends.
func (l *lastSeen) run(ctx context.Context) {
	t := time.NewTicker(seenInterval)
	defer t.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		// What has begun is finished even when ctx ends meanwhile.
		telling, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastTimeout)
		l.flush(telling)
		cancel()
	}
}

// flush tells the registry what is new. What it does not take is kept.
func (l *lastSeen) flush(ctx context.Context) {
	l.mu.Lock()
	dirty := l.dirty
	l.dirty = map[string]message.Seen{}
	l.mu.Unlock()
	for len(dirty) > 0 {
		chunk := make(map[string]message.Seen, min(len(dirty), seenChunk))
		for uuid, s := range dirty {
			if len(chunk) == seenChunk {
				break
			}
			chunk[uuid] = s
		}
		if _, err := bus.Call[message.RevisionReply](ctx, l.bus, message.RegistrySeen, message.SeenRequest{Seen: chunk}); err != nil {
			l.log.Warn("registry was not told who was last seen, trying again later", "endpoints", len(dirty), "error", err)
			l.keep(dirty)
			return
		}
		maps.DeleteFunc(dirty, func(uuid string, _ message.Seen) bool { _, sent := chunk[uuid]; return sent })
	}
}

func (l *lastSeen) keep(dirty map[string]message.Seen) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for uuid, s := range dirty {
		if _, newer := l.dirty[uuid]; newer {
			continue
		}
		if _, known := l.recent[uuid]; known { // else deleted meanwhile
			l.dirty[uuid] = s
		}
	}
}
