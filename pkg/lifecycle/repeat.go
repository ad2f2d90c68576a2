package lifecycle

import (
	"context"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/beat"
)

// Repeat calls f at once and then at every beat of an interval until ctx ends. A
// call is never begun while another one goes on: beats that have passed meanwhile
// are left out.
func Repeat(ctx context.Context, interval time.Duration, f func()) {
	for {
		f()
		if Sleep(ctx, beat.Next(interval)) != nil {
			return
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
