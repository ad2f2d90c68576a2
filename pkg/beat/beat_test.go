package beat

import (
	"testing"
	"time"
)

// A beat is at a multiple of its interval, in the future and not later than an
// interval from now, and the beats of an interval are among those of its parts.
func TestNext(t *testing.T) {
	const s = time.Second
	for _, tc := range []struct{ age, interval, want time.Duration }{
		{0, 10 * s, 10 * s}, {1, 10 * s, 10*s - 1}, {10*s - 1, 10 * s, 1}, {10 * s, 10 * s, 10 * s}, {25 * s, 10 * s, 5 * s}, {25 * s, 30 * s, 5 * s},
		{25 * s, time.Hour, time.Hour - 25*s}, {25*s + 1, 1, 1},
	} {
		if got := next(tc.age, tc.interval); got != tc.want {
			t.Errorf("at %s, every %s: %s, want %s", tc.age, tc.interval, got, tc.want)
		}
	}
}
