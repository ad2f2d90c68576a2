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
// are used: a fifth of the limit, at most 512 MiB, for what is in flight
// between two looks and for stores that rewrite files before they delete the
// old ones. A limit of 0 is none.
func NewGuard(dir string, limit int64) *Guard {
	return &Guard{dir: dir, limit: limit, stop: limit - min(limit/5, 512<<20)}
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

// fastest is how many bytes a second the stores are taken to grow at most.
const fastest = 200 << 20

// interval returns how long nobody needs to look: the less room there is, the
// shorter. A full store is looked at every second, to see that it is not; one
// without a bound is only watched.
func (g *Guard) interval() time.Duration {
	room := g.stop - g.used.Load()
	switch {
	case g.limit <= 0:
		return 10 * time.Second
	case room <= 0:
		return time.Second
	}
	return min(5*time.Second, max(50*time.Millisecond, time.Duration(float64(room)/fastest*float64(time.Second))))
}

// Run looks again and again until ctx ends, the more often the less room there
// is. report is told of errors.
func (g *Guard) Run(ctx context.Context, report func(error)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(g.interval()):
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
