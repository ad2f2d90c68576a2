package gateway

import (
	"testing"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
)

// The registry is told soon of an endpoint that it was not told of, or that has
// another address, and seldom of the others. What it has not taken it is told
// again.
func TestSeenIsTold(t *testing.T) {
	r := newRig(t, func(c *Config) { c.seenAgain = time.Hour })
	l := r.svc.seen
	const uuid = "3ea4a4a2-0b2c-4c0a-9f0e-0d5ac1e7b5a1"
	told := func() message.Seen {
		r.registry.mu.Lock()
		defer r.registry.mu.Unlock()
		return r.registry.seen[uuid]
	}
	at := time.Now().UTC().Add(-time.Minute)
	hear := func(ip string) message.Seen {
		at = at.Add(time.Second)
		l.touch(uuid, ip, at)
		return message.Seen{Time: at.Round(0), IP: ip}
	}
	flush := func(all bool) {
		t.Helper()
		if !l.flush(t.Context(), all) {
			t.Fatal("the registry did not take it")
		}
	}
	first := hear("192.0.2.1")
	flush(false)
	if got := told(); got != first {
		t.Errorf("of a new endpoint the registry knows %v, want %v", got, first)
	}
	second := hear("192.0.2.1")
	flush(false)
	if got := told(); got != first {
		t.Errorf("the registry was told at once of %v", got)
	}
	flush(true)
	if got := told(); got != second {
		t.Errorf("when all are told the registry knows %v, want %v", got, second)
	}
	moved := hear("192.0.2.2")
	flush(false)
	if got := told(); got != moved {
		t.Errorf("of another address the registry knows %v, want %v", got, moved)
	}
	last := hear("192.0.2.3")
	r.bus.NC.Close() // with the registry
	if l.flush(t.Context(), false) {
		t.Error("a registry that is gone has taken it")
	}
	if due := l.due(false); due[uuid].Time.Round(0) != last.Time {
		t.Errorf("due is %v, want %v", due, last)
	}
}
