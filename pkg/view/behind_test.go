package view_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/natstest"
)

// A view whose consumer stands at a copy that is behind is not ready, nor passes
// anything over, until what the stream has is folded.
func TestConsumerAtACopyThatIsBehind(t *testing.T) {
	for _, filters := range [][]string{nil, {"s.a"}} {
		for has := range 2 { // messages that the copy has at the start
			t.Run(fmt.Sprint(filters, has), func(t *testing.T) {
				c := setup(t)
				c.filters = filters
				publish(t, c.bus, "s.a", 3)
				publish(t, c.bus, "s.b", 1)
				b := natstest.NewBehind(t, c.bus.JS, "S")
				b.Catchup(has)
				c.bus.JS = b
				c.open()
				defer c.stop()
				until(t, "looked again", func() error {
					if c.Ready() {
						t.Fatalf("ready at sequence %d of 4", c.Position())
					}
					if b.Made.Load() < 4 {
						return errors.New("not yet")
					}
					return nil
				})
				if pos := c.Position(); pos != uint64(has) {
					t.Errorf("position %d, want %d", pos, has)
				}
				b.Catchup(4 - has)
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				if err := c.WaitReady(ctx); err != nil {
					t.Fatal(err)
				}
				// Also one that was up to date looks for another copy.
				publish(t, c.bus, "s.a", 1)
				made := b.Made.Load()
				until(t, "looked again", func() error {
					if b.Made.Load() == made {
						return errors.New("not yet")
					}
					return nil
				})
				b.Catchup(1)
				if err := c.Wait(ctx, 5); err != nil {
					t.Fatal(err)
				}
				if n := c.count("s.a"); n != 4 {
					t.Errorf("%d messages, want 4", n)
				}
			})
		}
	}
}
