package dispatch

import (
	"testing"

	"github.com/nightjar-edr/nightjar/pkg/natstest"
)

func TestUnusableFlags(t *testing.T) {
	natstest.UnusableFlags(t, Flags, []string{"--command-history", "0"}, []string{"--command-history", "many"}, []string{"--replicas", "9"})
}
