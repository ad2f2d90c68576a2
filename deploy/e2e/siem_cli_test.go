//go:build natscli

package e2e

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
)

// TestSIEMCommandLine runs the commands of the page with the NATS command line
// that NIGHTJAR_NATS_CLI names.
func TestSIEMCommandLine(t *testing.T) {
	program := os.Getenv("NIGHTJAR_NATS_CLI")
	if program == "" {
		t.Fatal("NIGHTJAR_NATS_CLI does not name the NATS command line; make test-siem does")
	}
	list := commands(t, "nats ")
	if len(list) != 3 {
		t.Fatalf("%d commands on the page", len(list))
	}
	s := newSite(t)
	live, _ := s.run(program+strings.TrimPrefix(list[2], "nats"))
	// Subscribed once an alert that nobody stores comes through.
	nc := s.siem()
	eventually(t, "subscribed", func() error {
		if !strings.Contains(live.String(), "Subscribing") && nc.Status() == nats.CONNECTED {
			return errors.New(live.String())
		}
		return nil
	})
	want := s.play(0) + s.play(1)
	contains := func(out *lineBuffer, text string, n int) func() error {
		return func() error {
			if got := strings.Count(out.String(), text); got < n {
				return fmt.Errorf("%d of %d in %q", got, n, out.String())
			}
			return nil
		}
	}
	eventually(t, "alerts are stored", func() error {
		info, _ := s.run(program+strings.TrimPrefix(list[1], "nats"))
		return awaitEnd(info, fmt.Sprintf("Unprocessed Messages: %d", want))
	})
	next, _ := s.run(program + strings.TrimPrefix(list[0], "nats"))
	eventually(t, "ten alerts", contains(next, `"EdrData"`, 10))
	if left := s.alerts(); len(left) != want-10 {
		t.Errorf("%d alerts are left of %d", len(left), want)
	}
	eventually(t, "the worst alerts live", contains(live, "edr.alerts.critical.", 1))
	if strings.Contains(live.String(), "edr.alerts.low.") {
		t.Errorf("live: %s", live.String())
	}
}
