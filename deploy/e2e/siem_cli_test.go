//go:build natscli

package e2e

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/nightjar-edr/nightjar/pkg/samples"
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
	replace := []string{"nats --server", program + " --server"}
	want := 0
	for i := range len(samples.Endpoints()) {
		want += s.play(i)
	}
	eventually(t, "all alerts wait", func() error {
		out, err := s.command(list[1], replace...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), fmt.Sprintf("Unprocessed Messages: %d", want)) {
			return fmt.Errorf("%w\n%s", err, out)
		}
		return nil
	})
	out, err := s.command(list[0], replace...).CombinedOutput()
	if n := strings.Count(string(out), `"EdrData"`); err != nil || n != 10 {
		t.Errorf("%d alerts of ten: %v\n%s", n, err, out)
	}
	if left := s.alerts(); len(left) != want-10 {
		t.Errorf("%d alerts are left of %d", len(left), want)
	}
	live, _ := s.run(list[2], replace...)
	eventually(t, "the worst alerts live", func() error {
		s.play(0) // again, until it listens
		if !strings.Contains(live.String(), "edr.alerts.critical.") {
			return errors.New(live.String())
		}
		return nil
	})
	if strings.Contains(live.String(), "edr.alerts.low.") {
		t.Errorf("live: %s", live.String())
	}
}
