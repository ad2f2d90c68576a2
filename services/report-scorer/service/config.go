package scorer

import (
	"flag"

	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

// Config configures the service. It has no settings beyond those that all
// services share.
type Config struct {
	lifecycle.Env
}

// Flags adds the service's own flags, of which there are none, and returns
// the function that makes the service once flags are read.
func Flags(*flag.FlagSet) func(lifecycle.Env) (lifecycle.Component, error) {
	return func(env lifecycle.Env) (lifecycle.Component, error) {
		return New(Config{Env: env})
	}
}
