package view_test

import (
	"fmt"
	"testing"
)

// A view that does not get on with a message is behind by its age, and is not
// any more once it has folded it.
func TestLagGrowsWhileAFoldTakesLong(t *testing.T) {
	c := setup(t)
	held := make(chan struct{})
	c.hold = func() { <-held }
	c.open()
	defer c.stop()
	last := publish(t, c.bus, "s.a", 1)
	behind := func(more float64) {
		until(t, "behind", func() error {
			if got := c.metric("view_lag_seconds"); got <= more {
				return fmt.Errorf("%v s behind, want more than %v", got, more)
			}
			return nil
		})
	}
	behind(0)
	behind(c.metric("view_lag_seconds"))
	close(held)
	if err := c.Wait(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	until(t, "caught up", func() error {
		if got := c.metric("view_lag_seconds"); got != 0 {
			return fmt.Errorf("%v s behind", got)
		}
		return nil
	})
}
