//go:build !linux && !darwin

package diskuse

import "math"

// space is not known: there is always enough.
func space(string) (free, size int64, err error) { return math.MaxInt64, 0, nil }
