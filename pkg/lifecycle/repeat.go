package lifecycle

import (
	"context"
	"time"
)

// Repeat calls f at once and then at every interval until ctx ends. A call is
// never begun while another one goes on: an interval that has passed meanwhile
// is made up for once.
func Repeat(ctx context.Context, interval time.Duration, f func()) {
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		f()
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}
