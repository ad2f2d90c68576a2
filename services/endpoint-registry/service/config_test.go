package registry_test

import (
	"testing"

	"github.com/nightjar-edr/nightjar/pkg/natstest"
	registry "github.com/nightjar-edr/nightjar/services/endpoint-registry/service"
)

func TestUnusableFlags(t *testing.T) {
	natstest.UnusableFlags(t, registry.Flags, []string{"--ops-addr", "nowhere"}, []string{"--replicas", "0"}, []string{"--sync", "sometimes"})
}
