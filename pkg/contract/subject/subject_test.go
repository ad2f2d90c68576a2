package subject_test

import (
	"testing"

	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
)

// The partition of an endpoint and the names below are known outside: they
// must never change.
func TestNames(t *testing.T) {
	const endpoint = "03e31275-2277-d8e0-bb5f-480fac7ee4ef"
	for want, got := range map[string]string{
		"edr.events.9." + endpoint:            subject.Events(endpoint),
		"edr.alerts.high." + endpoint:         subject.Alerts(subject.High, endpoint),
		"edr.deadletter.not-json." + endpoint: subject.DeadLetter("not-json", endpoint),
		"edr.logs.9.query":                    subject.Logs(subject.PartitionOf(endpoint), "query"),
		endpoint:                              subject.Endpoint(subject.Events(endpoint)),
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	want := []subject.Severity{"info", "low", "low", "low", "medium", "medium", "medium", "high", "high", "critical", "critical"}
	for criticality, severity := range want {
		if got := subject.SeverityOf(criticality); got != severity {
			t.Errorf("criticality %d is %s, want %s", criticality, got, severity)
		}
	}
}

func TestIsUUID(t *testing.T) {
	for s, want := range map[string]bool{
		"03e31275-2277-d8e0-bb5f-480fac7ee4ef":  true,
		"03E31275-2277-D8E0-BB5F-480FAC7EE4EF":  true,
		"03e31275-2277-d8e0-bb5f-480fac7ee4ef ": false,
		"03e31275-2277-d8e0-bb5f-480fac7ee4eg":  false,
		"a.b.>":                                 false, "": false,
	} {
		if got := subject.IsUUID(s); got != want {
			t.Errorf("IsUUID(%q) = %v", s, got)
		}
	}
}
