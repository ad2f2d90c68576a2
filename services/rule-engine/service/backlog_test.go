package ruleengine

import (
	"fmt"
	"testing"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
)

// TestBacklogIsDeliveredOnce lets many events come in while the rule-engine is
// down. When it works through them, each batch is delivered once: what is
// handed out ahead is worked on long before its time is over.
func TestBacklogIsDeliveredOnce(t *testing.T) {
	const batches, size, evil = 200000 / message.MaxBatchEvents, message.MaxBatchEvents, 20
	r := newRig(t)
	x := r.start(r.config())
	x.mustAdd(false, rule("evil", "evil", 5, ""))
	x.stop()
	lines := make([]string, size)
	for b := range batches {
		for i := range lines {
			lines[i] = event4(b*size+i, "good.exe")
		}
		if b%(batches/evil) == 0 {
			lines[0] = event4(b*size, "evil.exe")
		}
		r.send(endpointA, lines...)
	}
	x = r.start(r.config())
	c, err := r.bus.JS.Consumer(t.Context(), stream.Events, stream.EventsConsumer)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		info, err := c.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		// Every delivery counts in the consumer's own sequence.
		if info.NumRedelivered > 0 || info.Delivered.Consumer > batches {
			t.Fatalf("%d batches were delivered %d times, %d again", batches, info.Delivered.Consumer, info.NumRedelivered)
		}
		if info.AckFloor.Stream < batches {
			return fmt.Errorf("%d of %d batches are acknowledged", info.AckFloor.Stream, batches)
		}
		return nil
	})
	wantOnce(t, r.alerts(), evil)
	if n := x.value("nightjar_rule_engine_events_total"); n != batches*size {
		t.Errorf("%v events were looked at, want %d", n, batches*size)
	}
}
