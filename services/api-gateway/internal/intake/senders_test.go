package intake

import (
	"fmt"
	"testing"
	"time"
)

// send has n of so many endpoints send within a second that begins at now, and
// returns its end.
func send(s *senders, now time.Time, n, endpoints int) time.Time {
	for i := range n {
		s.add(fmt.Sprint(i%endpoints), now.Add(time.Duration(i)*time.Second/time.Duration(n)))
	}
	return now.Add(time.Second)
}

func TestSenders(t *testing.T) {
	now := start
	s := newSenders(now)
	see := func(want int) {
		t.Helper()
		if got := s.within(100 * time.Millisecond); got != want {
			t.Errorf("%d endpoints send within 100 ms, want %d", got, want)
		}
	}
	see(0)
	now = send(&s, now, 2000, 1000)
	now = send(&s, now, 3000, 30) // begins by counting the second before
	see(100)
	s.add("one", now)
	see(3)
	s.add("one", now.Add(100*time.Second))
	see(0)
	if len(s.seen) != 1 {
		t.Errorf("%d endpoints are kept", len(s.seen))
	}
}

// How long the next message waits, and for how many.
func TestHold(t *testing.T) {
	for _, c := range []struct {
		name      string
		endpoints int
		took      time.Duration
		sent      int
		wait      time.Duration
		n         int
	}{
		{"a few who send often", 32, 500 * time.Microsecond, 32, 2 * time.Millisecond, 32},
		{"a few and a slow write", 32, time.Second, 5, holdTime, 5},
		{"not quite many", 399, time.Millisecond, 5, holdTime, 5},
		{"many", 400, time.Millisecond, 5, manyTime, 8},
		{"many, of whom many were answered", 400, time.Millisecond, 50, manyTime, 50},
		{"very many", 10000, time.Millisecond, 5, manyTime, 200},
		{"more than go together", 10000, time.Millisecond, 2 * maxTogether, manyTime, maxTogether},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := &Intake{senders: newSenders(start)}
			q.senders.add("last", send(&q.senders, start, 20000, c.endpoints))
			before := time.Now()
			q.mu.Lock()
			q.hold(c.took, c.sent)
			got, n := q.holdUntil.Sub(before), q.holdFor
			q.mu.Unlock()
			if got < c.wait || got > c.wait+time.Since(before) || n != c.n {
				t.Errorf("waits %s for %d, want %s for %d", got, n, c.wait, c.n)
			}
		})
	}
}
