package diskuse

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync/atomic"
	"time"
)

// ErrFull means that the limit is all but reached.
var ErrFull = errors.New("the stores are at their limit (max-store)")

// Guard watches a folder.
type Guard struct {
	dir         string
	limit, stop int64
	used        atomic.Int64
}

// NewGuard returns a guard that reports ErrFull a margin before limit bytes
// are used: a tenth of the limit, at most 256 MiB, for what is in flight
// between two looks. A limit of 0 is none.
func NewGuard(dir string, limit int64) *Guard {
	return &Guard{dir: dir, limit: limit, stop: limit - min(limit/10, 256<<20)}
}

// Measure looks once.
func (g *Guard) Measure() error {
	used, err := Of(g.dir)
	if err != nil {
		return err
	}
	g.used.Store(used)
	return nil
}

// Run looks every second until ctx ends. report is told of errors.
func (g *Guard) Run(ctx context.Context, report func(error)) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if err := g.Measure(); err != nil {
				report(err)
			}
		}
	}
}

// Used returns the bytes in use at the last look.
func (g *Guard) Used() int64 { return g.used.Load() }

// Full returns an error that wraps ErrFull when nothing more may be stored.
func (g *Guard) Full() error {
	if g.limit > 0 && g.used.Load() >= g.stop {
		return fmt.Errorf("%w: %d of %d bytes are in use", ErrFull, g.used.Load(), g.limit)
	}
	return nil
}

// Of returns the bytes of disk that all files below dir occupy. Files that
// vanish while it looks do not count.
func Of(dir string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			var info fs.FileInfo
			if info, err = d.Info(); err == nil {
				sum += occupied(info)
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("measure %s: %w", dir, err)
	}
	return sum, nil
}
