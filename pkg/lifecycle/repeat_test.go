package lifecycle_test

import (
	"context"
	"errors"
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

// Sleep ends with its time or with its context, and says which.
func TestSleep(t *testing.T) {
	if err := lifecycle.Sleep(t.Context(), time.Millisecond); err != nil {
		t.Errorf("a sleep to its end: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := lifecycle.Sleep(ended, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("a sleep in a context that has ended: %v", err)
	}
}
