package ingest

import (
	"slices"
	"testing"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
)

// TestMerge holds that what is stored is merged when nothing comes any more, that
// answers are the same before and after that and after a new start, and that
// repetitions are known.
func TestMerge(t *testing.T) {
	r := newRig(t)
	r.start()
	var want []string
	for n := range 5 {
		lines := []string{line(noon.Add(time.Duration(n)*time.Minute), 2*n), line(noon.Add(time.Duration(n)*time.Minute+1), 2*n+1)}
		r.send(one, noon, lines...)
		if n%2 == 0 {
			lines[1] = r.mark(one, lines[1], noon, 5)
		}
		r.settle()
		want = append(want, lines...)
	}
	check := func(when string) {
		t.Helper()
		if got := r.ask(message.LogsRequest{Endpoint: one}); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", when, got, want)
		}
	}
	check("before")
	r.eventually("nothing waits to be merged", func() bool { return r.metric("merge_waiting_hours") == 0 })
	if r.metric("merge_chunks_total") == 0 || r.metric("merge_seconds_total") == 0 {
		t.Error("nothing was merged")
	}
	check("after")
	r.send(one, noon, line(noon.Add(time.Minute), 2), line(noon.Add(time.Hour), 99))
	want = append(want, line(noon.Add(time.Hour), 99))
	r.settle()
	if n := r.metric("events_repeated_total"); n != 1 {
		t.Errorf("%v repetitions, want 1", n)
	}
	check("after a repetition")
	r.restart(false)
	check("after a new start")
	r.restart(true)
	check("built anew")
}
