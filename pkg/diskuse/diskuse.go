package diskuse

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/beat"
)

// Reasons why nothing more may be stored.
var (
	// ErrFull means that the limit is all but reached.
	ErrFull = errors.New("the stores are at their limit (max-store)")
	// ErrNoRoom means that the file system is all but full.
	ErrNoRoom = errors.New("the file system has no room (min-free)")
)

// Guard watches a folder and the file system that it is on.
type Guard struct {
	dir               string
	limit, stop, keep int64
	used, free        atomic.Int64
	space             func(dir string) (free, size int64, err error)
}

// NewGuard returns a guard that reports ErrFull a margin before limit bytes
// are used: a fifth of the limit, at most 512 MiB, for what is in flight
// between two looks and for stores that rewrite files before they delete the
// old ones. A limit of 0 is none.
//
// It reports ErrNoRoom when fewer than keep bytes of the file system are free,
// or than a fifth of it, whichever is less; 0 for never. Stores that write
// through a memory map, as Badger does, are killed by the system when the last
// block is taken, so that must not come about by what the stores do.
func NewGuard(dir string, limit, keep int64) *Guard {
	return &Guard{dir: dir, limit: limit, stop: limit - min(limit/5, 512<<20), keep: keep, space: space}
}

// Measure looks once.
func (g *Guard) Measure() error {
	used, err := Of(g.dir)
	if err != nil {
		return err
	}
	g.used.Store(used)
	return g.measureFree()
}

// room returns how many bytes of the file system are free, and how many of them
// are to be kept.
func (g *Guard) room() (free, keep int64, err error) {
	free, size, err := g.space(existing(g.dir))
	if err != nil {
		return 0, 0, fmt.Errorf("free space of %s: %w", g.dir, err)
	}
	return free, min(g.keep, size/5), nil
}

// existing returns a folder, or the nearest one above it that exists.
func existing(dir string) string {
	for {
		_, err := os.Stat(dir)
		above := filepath.Dir(dir)
		if !errors.Is(err, fs.ErrNotExist) || above == dir {
			return dir
		}
		dir = above
	}
}

// measureFree looks at the file system. What counts is how many bytes are free
// beyond those to keep.
func (g *Guard) measureFree() error {
	if g.keep <= 0 {
		return nil
	}
	free, keep, err := g.room()
	if err != nil {
		return err
	}
	g.free.Store(free - keep)
	return nil
}

// Startable returns an error that wraps ErrNoRoom when there is not even an
// eighth of the space that is to be kept: stores cannot be opened then without
// the danger that they take the process with them. It looks itself.
func (g *Guard) Startable() error {
	if g.keep <= 0 {
		return nil
	}
	free, keep, err := g.room()
	if err != nil {
		return err
	}
	if need := keep / 8; free < need {
		return fmt.Errorf("%w: %s has %d bytes left, a start needs %d", ErrNoRoom, g.dir, free, need)
	}
	return nil
}

// fastest is how many bytes a second the stores are taken to grow at most.
const fastest = 200 << 20

// interval returns how long nobody needs to look: the less room there is, the
// shorter. A full store is looked at every second, to see that it is not; one
// without a bound is only watched.
func (g *Guard) interval() time.Duration {
	room := int64(math.MaxInt64)
	if g.limit > 0 {
		room = g.stop - g.used.Load()
	}
	if g.keep > 0 {
		room = min(room, g.free.Load())
	}
	switch {
	case room == math.MaxInt64:
		return 10 * time.Second
	case room <= 0:
		return time.Second
	}
	return min(5*time.Second, max(50*time.Millisecond, time.Duration(float64(room)/fastest*float64(time.Second))))
}

// Run looks again and again until ctx ends, the more often the less room there
// is. Without a limit it looks at the file system alone. report is told of
// errors.
func (g *Guard) Run(ctx context.Context, report func(error)) {
	look := g.Measure
	if g.limit <= 0 {
		look = g.measureFree
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(beat.Next(g.interval())):
			if err := look(); err != nil {
				report(err)
			}
		}
	}
}

// Used returns the bytes in use at the last look.
func (g *Guard) Used() int64 { return g.used.Load() }

// Limit returns how many bytes may be in use before nothing more may be stored,
// and whether there is such a limit.
func (g *Guard) Limit() (int64, bool) { return g.stop, g.limit > 0 }

// Spare returns how many bytes of the file system were free at the last look
// beyond those to keep, below 0 when too few are, and whether any are kept.
func (g *Guard) Spare() (int64, bool) { return g.free.Load(), g.keep > 0 }

// Full returns an error that wraps ErrFull or ErrNoRoom when nothing more may
// be stored.
func (g *Guard) Full() error {
	if g.limit > 0 && g.used.Load() >= g.stop {
		return fmt.Errorf("%w: %d of %d bytes are in use", ErrFull, g.used.Load(), g.limit)
	}
	if g.keep > 0 && g.free.Load() < 0 {
		return fmt.Errorf("%w: %d bytes too few are free", ErrNoRoom, -g.free.Load())
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
