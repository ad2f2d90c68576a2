package retention

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/store"
)

const day = 24 * time.Hour

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// machine is a computer whose clock and whose running time a test moves.
type machine struct {
	t    *testing.T
	db   *store.DB
	wall time.Time
	run  time.Duration
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	db, err := store.Open(store.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return &machine{t: t, db: db, wall: noon}
}

// clock returns the clock of a process that starts now.
func (m *machine) clock() *Clock {
	m.t.Helper()
	c, err := newClock(m.db, prometheus.NewRegistry(), "test", lifecycle.Discard(), Patience, func() (time.Time, time.Duration) { return m.wall, m.run })
	if err != nil {
		m.t.Fatal(err)
	}
	return c
}

// pass lets time pass, jump lets the clock alone do so.
func (m *machine) pass(d time.Duration) { m.wall, m.run = m.wall.Add(d), m.run+d }
func (m *machine) jump(d time.Duration) { m.wall = m.wall.Add(d) }

// TestClock holds that a clock that jumps ahead is not believed for a day of
// running time, whenever it jumps, and that everything else is.
func TestClock(t *testing.T) {
	says := func(t *testing.T, c *Clock, want time.Time, doubting bool) {
		t.Helper()
		if got := c.Now(); !got.Equal(want) || c.doubting != doubting {
			t.Errorf("%v, doubting %v, want %v, %v", got, c.doubting, want, doubting)
		}
	}
	for name, run := range map[string]func(t *testing.T, m *machine){
		"time passes": func(t *testing.T, m *machine) {
			c := m.clock()
			says(t, c, noon, false)
			m.pass(40 * day)
			says(t, c, noon.Add(40*day), false)
		},
		"small steps ahead": func(t *testing.T, m *machine) {
			c := m.clock()
			for range 100 {
				m.pass(time.Hour)
				m.jump(time.Minute)
				says(t, c, m.wall, false)
			}
		},
		"ahead and back while it runs": func(t *testing.T, m *machine) {
			c := m.clock()
			says(t, c, noon, false)
			m.jump(365 * day)
			says(t, c, noon, true)
			m.pass(23 * time.Hour)
			says(t, c, noon.Add(23*time.Hour), true)
			m.jump(-365 * day)
			says(t, c, noon.Add(23*time.Hour), false)
			m.pass(2 * day)
			says(t, c, noon.Add(23*time.Hour+2*day), false)
		},
		"ahead for good": func(t *testing.T, m *machine) {
			c := m.clock()
			m.jump(365 * day)
			says(t, c, noon, true)
			m.pass(day)
			says(t, c, noon.Add(366*day), false)
		},
		"back while it runs, and put right": func(t *testing.T, m *machine) {
			c := m.clock()
			m.jump(-day)
			says(t, c, noon.Add(-day), false)
			m.jump(day)
			says(t, c, noon.Add(-day), true)
			m.pass(day)
			says(t, c, noon.Add(day), false)
		},
		"ahead between two runs": func(t *testing.T, m *machine) {
			says(t, m.clock(), noon, false)
			m.jump(365 * day)
			c := m.clock()
			says(t, c, noon, true)
			m.pass(time.Hour)
			says(t, c, noon.Add(time.Hour), true)
			// A new start while in doubt does not end the doubt.
			c = m.clock()
			c.Seen(m.wall)
			says(t, c, noon.Add(time.Hour), true)
			m.pass(day)
			says(t, c, noon.Add(365*day+25*time.Hour), false)
		},
		"back between two runs": func(t *testing.T, m *machine) {
			says(t, m.clock(), noon, false)
			m.jump(-day)
			says(t, m.clock(), noon.Add(-day), false)
		},
		"a new store beside an old stream": func(t *testing.T, m *machine) {
			c := m.clock()
			c.Seen(time.Time{})
			c.Seen(noon.Add(-365 * day))
			says(t, c, noon.Add(-365*day), true)
			m.jump(-365 * day)
			says(t, c, noon.Add(-365*day), false)
		},
	} {
		t.Run(name, func(t *testing.T) { run(t, newMachine(t)) })
	}
}
