package message

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// AuditOK is the outcome of a change that was made.
const AuditOK = "ok"

// Audit is what the stream AUDIT keeps of a change that an operator asked
// for, whether it was made or refused. It carries no keys and no contents.
type Audit struct {
	// Time is when the change was answered.
	Time time.Time `json:"time"`
	// Operator is the identifier of who asked, Remote the address it was
	// asked from.
	Operator string `json:"operator"`
	Remote   string `json:"remote,omitempty"`
	// Action is a word for the change, such as endpoint.create.
	Action string `json:"action"`
	// Target is what was changed: an endpoint's UUID, a rule's name.
	Target string `json:"target,omitempty"`
	// Outcome is AuditOK or the error that the operator was shown.
	Outcome string `json:"outcome"`
}

// Msg makes the message on edr.audit.<operator>, the identifier in its
// subject made of letters, digits, dashes and underscores alone.
func (a *Audit) Msg() (*nats.Msg, error) {
	data, err := json.Marshal(a)
	if err != nil {
		return nil, fmt.Errorf("audit record: %w", err)
	}
	m := nats.NewMsg("edr.audit." + SubjectToken(a.Operator))
	m.Data = data
	return m, nil
}

// SubjectToken makes a token of a subject, or of a key of a bucket, of any
// text: other characters than letters, digits, dashes and underscores become
// dashes, and an empty text becomes one dash.
func SubjectToken(s string) string {
	if s == "" {
		return "-"
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_':
			return r
		}
		return '-'
	}, s)
}
