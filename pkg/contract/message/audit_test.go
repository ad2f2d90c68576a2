package message_test

import (
	"testing"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
)

func TestAudit(t *testing.T) {
	a := message.Audit{Time: received, Operator: "soc lead.1>", Remote: "192.0.2.9", Action: "endpoint.delete", Target: endpoint, Outcome: message.AuditOK}
	m, err := a.Msg()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "audit", m, false)
}

func TestSubjectToken(t *testing.T) {
	for in, want := range map[string]string{"": "-", "admin": "admin", "a.b*c>d e": "a-b-c-d-e", "é": "-", "A_b-9": "A_b-9"} {
		if got := message.SubjectToken(in); got != want {
			t.Errorf("SubjectToken(%q) = %q, want %q", in, got, want)
		}
	}
}
