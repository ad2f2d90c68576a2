package dispatch

import (
	"errors"
	"flag"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/config"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

// DefaultHistory is how many commands of an endpoint are kept, beside those
// that wait, unless Config says otherwise.
const DefaultHistory = 1000

// DefaultMaxQueued is how many commands may wait for an endpoint unless Config
// says otherwise.
const DefaultMaxQueued = 1000

// Config configures the service.
type Config struct {
	lifecycle.Env
	// History is how many commands of an endpoint are kept, beside those that
	// wait; 0 means DefaultHistory.
	History int
	// MaxQueued is how many commands may wait for an endpoint; 0 means
	// DefaultMaxQueued. Requests that come at the same moment may pass it.
	MaxQueued int

	// now is the clock; nil means time.Now. judged is the one by which commands
	// and files end; nil means now, or without it one that does not believe
	// each jump.
	now, judged func() time.Time
}

// Flags adds the service's own flags and returns the function that makes the
// service once they are read.
func Flags(fs *flag.FlagSet) func(lifecycle.Env) (lifecycle.Component, error) {
	var cfg Config
	AddBounds(fs, &cfg.History, &cfg.MaxQueued)
	return func(env lifecycle.Env) (lifecycle.Component, error) {
		cfg.Env = env
		return New(cfg)
	}
}

// AddBounds adds the flags of Config.History and Config.MaxQueued.
func AddBounds(fs *flag.FlagSet, history, queued *int) {
	for _, bound := range []struct {
		into  *int
		name  string
		value int
		usage string
	}{
		{history, "command-history", DefaultHistory, "how many commands of an endpoint are kept, beside those that wait"},
		{queued, "max-queued", DefaultMaxQueued, "how many commands may wait for an endpoint; more are refused"},
	} {
		fs.IntVar(bound.into, bound.name, bound.value, bound.usage)
		config.Check(fs, bound.name, func() error {
			if *bound.into < 1 {
				return errors.New("want at least 1")
			}
			return nil
		})
	}
}
