package registry

import (
	"flag"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

// Config configures the service.
type Config struct {
	lifecycle.Env

	// Import are endpoints of another manager, taken over with the uuid, key
	// and hostname they have before the service answers its first request,
	// created in this order. Those that exist are left alone, and those that
	// have been deleted stay so. An endpoint that cannot be taken over, or
	// that exists with another key, is an error that wraps
	// lifecycle.ErrUsage.
	Import []message.EndpointRecord
}

// Flags adds the service's own flags, of which there are none, and returns
// the function that makes the service once flags are read.
func Flags(*flag.FlagSet) func(lifecycle.Env) (lifecycle.Component, error) {
	return func(env lifecycle.Env) (lifecycle.Component, error) {
		return New(Config{Env: env})
	}
}
