package registry

import (
	"math"
	"strings"
	"testing"
)

// Every character of the alphabet is drawn as often as the others: a modulo
// without drawing again would favour the first eight by a quarter.
func TestKeysAreUniform(t *testing.T) {
	const keys = 4000
	drawn := map[rune]int{}
	for range keys {
		for _, r := range newKey() {
			drawn[r]++
		}
	}
	p := 1 / float64(len(keyAlphabet))
	mean := keys * keyLength * p
	limit := 7 * math.Sqrt(mean*(1-p))
	for _, r := range keyAlphabet {
		if d := math.Abs(float64(drawn[r]) - mean); d > limit {
			t.Errorf("%q was drawn %d times, %.0f is expected", r, drawn[r], mean)
		}
		delete(drawn, r)
	}
	if len(drawn) != 0 {
		t.Errorf("characters outside of the alphabet: %v", drawn)
	}
}

func TestCursor(t *testing.T) {
	x := newIndex()
	for _, uuid := range []string{"a", "b.c", ""} {
		p := place{created: x.nextCreated(t0), uuid: uuid}
		got, err := parseCursor(p.cursor())
		if err != nil || comparePlaces(got, p) != 0 {
			t.Errorf("%+v came back as %+v: %v", p, got, err)
		}
	}
	for _, bad := range []string{"?", "MQ", "MS4y", "eC4yLmE", strings.Repeat("A", 40)} {
		if p, err := parseCursor(bad); err == nil {
			t.Errorf("%q is a cursor of %+v", bad, p)
		}
	}
}
