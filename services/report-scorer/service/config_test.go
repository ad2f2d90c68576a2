package scorer

import (
	"testing"

	"github.com/nightjar-edr/nightjar/pkg/natstest"
)

func TestUnusableFlags(t *testing.T) {
	natstest.UnusableFlags(t, Flags, []string{"--ops-addr", "nowhere"}, []string{"--replicas", "0"}, []string{"--sync", "sometimes"})
}
