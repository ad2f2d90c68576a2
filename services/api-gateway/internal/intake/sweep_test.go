package intake

import (
	"errors"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
)

// A message that cannot be read also stays when the files of INTAKE are given
// back, though it stands before what was moved.
func TestSweepLeavesUnreadable(t *testing.T) {
	r := newRig(t)
	m := nats.NewMsg(subject.Intake("later"))
	m.Data = []byte("?")
	if _, err := r.own.JS.PublishMsg(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	r.begin()
	r.run()
	eventually(t, "it is ready", func() bool { return r.Ready() == nil })
	if err := errors.Join(r.hand(20, 3)...); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what was taken in together is moved", func() bool {
		r.Intake.mu.Lock()
		defer r.Intake.mu.Unlock()
		return r.purged > 1 && len(r.stored) == 0
	})
	r.stop()
	r.dirty = true
	r.sweep(t.Context())
	if n := r.messages(stream.Intake); n != 1 {
		t.Errorf("%d messages in INTAKE", n)
	}
}
