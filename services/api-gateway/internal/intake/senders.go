package intake

import "time"

// senders counts how many endpoints send within a second, however often each.
type senders struct {
	since time.Time
	seen  map[string]struct{}
	// rate is how many there were in a second, in the last one that is over.
	rate float64
}

func newSenders(now time.Time) senders {
	return senders{since: now, seen: map[string]struct{}{}}
}

// add counts a batch of an endpoint.
func (s *senders) add(endpoint string, now time.Time) {
	if passed := now.Sub(s.since); passed >= time.Second {
		s.rate = float64(len(s.seen)) / passed.Seconds()
		clear(s.seen)
		s.since = now
	}
	s.seen[endpoint] = struct{}{}
}

// within returns how many endpoints send within a time.
func (s *senders) within(d time.Duration) int { return int(s.rate * d.Seconds()) }
