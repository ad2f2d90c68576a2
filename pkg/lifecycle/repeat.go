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

// Sleep returns nil after d, or the error of ctx when that ends before.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
