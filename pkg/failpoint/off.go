//go:build !failpoint

package failpoint

// Enabled tells whether points can be armed in this build.
const Enabled = false

// Hit does nothing in this build.
func Hit(Point) {}

// HitIn does nothing in this build.
func HitIn(Point, string) {}
