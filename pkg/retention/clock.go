package retention

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/store"
)

// Patience is how long a process that removes what is old must run on before it
// believes a clock that has jumped ahead: time for somebody to put it right.
const Patience = 24 * time.Hour

const (
	// jump is how much further than expected the clock may be without doubt.
	jump = 5 * time.Minute
	// remembered is how old the time in the store may become.
	remembered = time.Minute
)

// clockKey holds the latest time that was believed, in RFC 3339.
var clockKey = []byte("\x00clock")

// Clock tells the time by which retention is judged. It is the system's, unless
// that has jumped ahead, while the process runs or since it last ran: then it
// goes on as if it had not, for its patience, in which somebody may put the
// system's clock right. What is removed is gone for ever; to keep it for a day
// longer costs some room. A clock that goes back is believed at once, as less is
// removed by it. Time in which the machine sleeps, or the process does not run,
// looks like a jump, too.
type Clock struct {
	db       *store.DB
	log      *slog.Logger
	system   reading
	patience time.Duration

	mu sync.Mutex
	// believed is the time that was believed when the process had run for at.
	believed time.Time
	at       time.Duration
	// doubting tells that the clock is doubted, since the process had run for
	// doubted.
	doubting bool
	doubted  time.Duration
	// saved is the time in the store. known tells that believed does not come
	// from the system's clock alone.
	saved time.Time
	known bool
}

// reading returns what the system's clock says and how long the process has
// run, which no change of that clock touches.
type reading func() (says time.Time, run time.Duration)

func system() reading {
	start := time.Now()
	return func() (time.Time, time.Duration) {
		now := time.Now()
		return now.Round(0).UTC(), now.Sub(start)
	}
}

// NewClock returns a clock that remembers in a store what time it was, and
// registers its metric for a service. It believes a jump ahead when the process
// has run on for patience.
func NewClock(db *store.DB, reg prometheus.Registerer, service string, log *slog.Logger, patience time.Duration) (*Clock, error) {
	return newClock(db, reg, service, log, patience, system())
}

func newClock(db *store.DB, reg prometheus.Registerer, service string, log *slog.Logger, patience time.Duration, system reading) (*Clock, error) {
	c := &Clock{db: db, log: log, system: system, patience: patience}
	c.believed, c.at = system()
	err := db.View(func(txn *badger.Txn) error {
		item, err := txn.Get(clockKey)
		if errors.Is(err, badger.ErrKeyNotFound) {
			return nil
		} else if err != nil {
			return err
		}
		return item.Value(func(b []byte) error { c.known = true; return c.believed.UnmarshalText(b) })
	})
	if err != nil {
		return nil, fmt.Errorf("read when the clock was last believed: %w", err)
	}
	c.saved = c.believed
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "nightjar", Subsystem: service, Name: "clock_doubted",
		Help: "1 while the system's clock is further ahead than it can be, so that nothing ends by it."}, func() float64 {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.doubting {
			return 1
		}
		return 0
	}))
	return c, nil
}

// Seen tells the clock that it was t once, where it remembers nothing better: a
// stream knows when its newest message was stored. The zero time says nothing.
func (c *Clock) Seen(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known || t.IsZero() {
		return
	}
	_, c.at = c.system()
	c.known, c.believed = true, t.UTC()
}

// Now returns the time.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	says, run := c.system()
	expected := c.believed.Add(run - c.at)
	switch {
	case says.Sub(expected) <= jump:
		if c.doubting {
			c.log.Info("the clock is back and is believed again", "clock", says)
		}
	case !c.doubting:
		c.doubting, c.doubted = true, run
		c.log.Warn("the clock is further ahead than it can be and is not believed for a while; put it right if it is wrong", "clock", says, "expected", expected, "patience", c.patience)
		fallthrough
	case run-c.doubted < c.patience:
		c.remember(expected)
		return expected
	default:
		c.log.Warn("the clock has stayed ahead and is believed", "clock", says, "expected", expected)
	}
	c.doubting, c.believed, c.at = false, says, run
	c.remember(says)
	return says
}

// remember writes a time to the store, from time to time.
func (c *Clock) remember(t time.Time) {
	if c.known && t.Sub(c.saved).Abs() < remembered {
		return
	}
	text, err := t.MarshalText()
	if err == nil {
		err = c.db.Update(func(txn *badger.Txn) error { return txn.Set(clockKey, text) })
	}
	if err != nil {
		c.log.Warn("the time is not remembered", "error", err)
		return
	}
	c.known, c.saved = true, t
}
