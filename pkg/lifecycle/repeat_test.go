package lifecycle_test

import (
	"context"
	"testing"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

// What is repeated is called at once, though the interval is long, and again
// until ctx ends.
func TestRepeat(t *testing.T) {
	for interval, want := range map[time.Duration]int{time.Hour: 1, time.Millisecond: 3} {
		ctx, cancel := context.WithCancel(t.Context())
		calls := 0
		lifecycle.Repeat(ctx, interval, func() {
			if calls++; calls == want {
				cancel()
			}
		})
		if calls < want {
			t.Errorf("every %s: %d calls, want %d", interval, calls, want)
		}
	}
}
