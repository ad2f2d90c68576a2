package backup

import (
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/nightjar-edr/nightjar/pkg/natstest"
)

// In a cluster the server that restores is known to the others a moment after it
// has answered: a part that reached nobody is sent again, and arrives once.
func TestPartsThatReachNobodyAreSentAgain(t *testing.T) {
	nc := natstest.Start(t).Bus(t, "test").NC
	sent := make(chan error, 1)
	go func() {
		_, err := send(t.Context(), nc, "restoring", []byte("part"), requestTimeout)
		sent <- err
	}()
	select {
	case err := <-sent:
		t.Fatalf("a part that reached nobody: %v", err)
	case <-time.After(100 * time.Millisecond): // asked several times by then
	}
	sub, err := nc.SubscribeSync("restoring")
	if err != nil {
		t.Fatal(err)
	}
	m, err := sub.NextMsg(requestTimeout)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Respond(nil); err != nil {
		t.Fatal(err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if m, err := sub.NextMsg(50 * time.Millisecond); !errors.Is(err, nats.ErrTimeout) {
		t.Fatalf("after its answer the part came again: %v, %v", m, err)
	}
}
