package ruleengine

import (
	"fmt"
	"testing"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
)

// A batch that comes after a pause is acknowledged at once. Those that follow are
// acknowledged together: when there are many, and when the service stops.
func TestAcknowledgedTogether(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.ackEvery = time.Hour
	x := r.start(cfg)
	sent := 0
	send := func(n int) {
		for range n {
			sent++
			r.send(endpointA, event4(sent, "evil.exe"))
		}
		eventually(t, func() error {
			if n := x.value("nightjar_rule_engine_events_total"); n != float64(sent) {
				return fmt.Errorf("%g events are looked at, of %d", n, sent)
			}
			return nil
		})
	}
	acknowledged := func(want int) {
		t.Helper()
		eventually(t, func() error {
			c, err := r.bus.JS.Consumer(t.Context(), stream.Events, stream.EventsConsumer)
			if err != nil {
				return err
			}
			if n := sent - c.CachedInfo().NumAckPending; n != want {
				return fmt.Errorf("%d of %d are acknowledged, want %d", n, sent, want)
			}
			return nil
		})
	}
	send(1)
	acknowledged(1)
	send(maxUnacked - 1)
	acknowledged(1)
	send(1)
	acknowledged(1 + maxUnacked)
	send(1)
	acknowledged(1 + maxUnacked)
	x.stop()
	acknowledged(sent)
}

// What waits to be acknowledged is so in the end, though nothing follows.
func TestAcknowledgedInTheEnd(t *testing.T) {
	r := newRig(t)
	r.start(r.config())
	for i := range 3 {
		r.send(endpointA, event4(i, "evil.exe"))
	}
	r.settle()
}
