package view

import (
	"context"
	"time"
)

// roomInterval is how often a view that waits for room looks whether there is.
const roomInterval = 250 * time.Millisecond

// awaitRoom returns when the store may be written to, or ctx ends.
func (v *View) awaitRoom(ctx context.Context) error {
	if v.cfg.Room == nil {
		return ctx.Err()
	}
	for said := false; ctx.Err() == nil; {
		err := v.cfg.Room()
		if err == nil {
			break
		}
		v.ready.Store(false)
		if !said {
			v.cfg.Log.Error("view waits for room", "view", v.cfg.Name, "error", err)
			said = true
		}
		select {
		case <-ctx.Done():
		case <-time.After(roomInterval):
		}
	}
	return ctx.Err()
}
