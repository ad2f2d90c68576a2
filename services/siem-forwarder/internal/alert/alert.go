package alert

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
)

// Alert is an alert as formats see it.
type Alert struct {
	message.Alert
	// ID is the same across redelivery: <endpoint>:<hash>.
	ID string
	// Severity is the word for the criticality.
	Severity subject.Severity
	// Payload is the message's body: the event with GeneInfo and EdrData.
	Payload []byte
	// ATTACK are the references of the signatures, each once.
	ATTACK []event.Attack
	// Event are the facts read from the payload.
	Event Event
}

// Event holds what is known of an event beyond its alert. Empty members are
// not known.
type Event struct {
	// OS is windows, linux or empty.
	OS string
	// Provider, Channel and Code name the kind of the event as its source
	// does; Action is a word for it.
	Provider, Channel, Code, Action string
	// Category and Type are those of the Elastic Common Schema, Outcome is
	// success or failure.
	Category, Type, Outcome string
	// Computer is the host's name as the event has it.
	Computer string

	// Process acted, Parent started it, Target was acted upon.
	Process, Parent, Target Process
	// User is who acted or logged on.
	User User
	// File was touched, Library was loaded.
	File, Library File
	Registry      Registry
	// Source and Destination are the ends of a connection.
	Source, Destination Peer
	// Transport is tcp, udp and the like. Direction is egress or ingress.
	Transport, Direction string
	DNS                  DNS
}

// Process is a process. PID is 0 when it is not known.
type Process struct {
	Path, CommandLine, Directory, GUID string
	PID                                int64
	User                               User
	Hashes                             Hashes
}

// Known tells whether anything is known of the process.
func (p *Process) Known() bool { return p.Path != "" || p.PID != 0 || p.GUID != "" }

// User is an account.
type User struct{ Name, Domain, ID string }

// Full is the account with its domain, as Windows writes it.
func (u User) Full() string {
	if u.Domain != "" && u.Name != "" {
		return u.Domain + `\` + u.Name
	}
	return u.Name
}

// File is a file.
type File struct {
	Path   string
	Hashes Hashes
}

// Hashes are lower-case hex digits.
type Hashes struct{ MD5, SHA1, SHA256, SHA512, Imphash string }

// Best returns the strongest hash there is.
func (h Hashes) Best() string {
	for _, s := range []string{h.SHA256, h.SHA512, h.SHA1, h.MD5} {
		if s != "" {
			return s
		}
	}
	return ""
}

// Registry is a value, or a key, of the Windows registry.
type Registry struct{ Path, Data string }

// Peer is an end of a connection. IP is a valid address or empty, Port is 0
// when it is not known.
type Peer struct {
	IP, Host string
	Port     int64
}

// DNS is a resolved question.
type DNS struct {
	Question string
	Answers  []string
}

// Read reads a message of the stream ALERTS.
func Read(h nats.Header, data []byte) (*Alert, error) {
	parsed, err := message.ParseAlert(h, data)
	if err != nil {
		return nil, err
	}
	a := &Alert{Alert: parsed, ID: h.Get(nats.MsgIdHdr), Severity: subject.SeverityOf(parsed.Criticality), Payload: data}
	if a.ID == "" {
		a.ID = message.MsgID(a.Endpoint, a.Generation, a.Hash)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var doc object
	if err := d.Decode(&doc); err != nil {
		return nil, fmt.Errorf("alert: %w", err)
	}
	var info struct {
		Event struct {
			GeneInfo struct{ ATTACK []event.Attack }
		}
	}
	_ = json.Unmarshal(data, &info) // an agent may have put something else there
	a.ATTACK = event.UnionAttack(info.Event.GeneInfo.ATTACK, nil)
	for _, r := range parsed.Rules {
		a.ATTACK = event.UnionAttack(a.ATTACK, r.ATTACK)
	}
	switch {
	case doc.object("Event", "System") != nil:
		a.Event = windows(doc.object("Event"))
	case doc.object("info", "event") != nil:
		a.Event = kunai(doc)
		a.ATTACK = event.UnionAttack(a.ATTACK, kunaiAttack(doc))
	}
	return a, nil
}

// Host is the best name there is for the endpoint.
func (a *Alert) Host() string {
	for _, s := range []string{a.Hostname, a.Event.Computer, a.IP} {
		if s != "" {
			return s
		}
	}
	return a.Endpoint
}

// Message is a sentence for people.
func (a *Alert) Message() string {
	what := ""
	switch e := &a.Event; {
	case e.Process.CommandLine != "":
		what = ": " + e.Process.CommandLine
	case e.Process.Path != "":
		what = ": " + e.Process.Path
	case e.Action != "":
		what = ": " + e.Action
	}
	return fmt.Sprintf("%s on %s%s", strings.Join(a.Signatures, ", "), a.Host(), what)
}
