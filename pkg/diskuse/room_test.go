package diskuse

import (
	"errors"
	"path/filepath"
	"testing"
)

// TestNoRoom holds that what is to be kept free is kept, of a large file system
// and of a small one, and that a start needs an eighth of it.
func TestNoRoom(t *testing.T) {
	const mib = 1 << 20
	for name, tc := range map[string]struct {
		keep, free, size int64
		full, startable  bool
	}{
		"room":               {512 * mib, 600 * mib, 10_000 * mib, false, true},
		"no room":            {512 * mib, 511 * mib, 10_000 * mib, true, true},
		"no room to start":   {512 * mib, 63 * mib, 10_000 * mib, true, false},
		"small, room":        {512 * mib, 21 * mib, 100 * mib, false, true},
		"small, no room":     {512 * mib, 19 * mib, 100 * mib, true, true},
		"small, no start":    {512 * mib, 2 * mib, 100 * mib, true, false},
		"nothing to be kept": {0, 0, 100 * mib, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			g := NewGuard(filepath.Join(dir, "made", "later"), 0, tc.keep)
			g.space = func(asked string) (free, size int64, err error) {
				if asked != dir {
					t.Errorf("asked of %s", asked)
				}
				return tc.free, tc.size, nil
			}
			if err := g.Startable(); (err == nil) != tc.startable || err != nil && !errors.Is(err, ErrNoRoom) {
				t.Errorf("startable: %v", err)
			}
			if err := g.Measure(); err != nil {
				t.Fatal(err)
			}
			if err := g.Full(); (err != nil) != tc.full || err != nil && !errors.Is(err, ErrNoRoom) {
				t.Errorf("full: %v", err)
			}
		})
	}
}
