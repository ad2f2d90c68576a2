// Package beat has what a process does now and then done at the same moments. To
// be woken is most of what an idle process costs: threads look for more work
// before they sleep again, and find none. What is looked at every 10 seconds, each
// at its own time, wakes it as often as there is something to look at; at beats
// it is woken once.
package beat

import "time"

// began is what beats are counted from.
var began = time.Now()

// Next returns how long it is until the next beat of an interval, a multiple of
// it since the process began: more than 0 and at most interval, which is more
// than 0.
func Next(interval time.Duration) time.Duration { return next(time.Since(began), interval) }

func next(age, interval time.Duration) time.Duration { return interval - age%interval }
