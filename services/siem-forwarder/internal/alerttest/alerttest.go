// Package alerttest makes alerts for tests: the messages that the rule-engine
// puts into the stream for the sample events.
package alerttest

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/samples"
)

// Endpoint is the endpoint of all messages.
const Endpoint = "5a92baeb-9384-47d3-92b4-a0db6f9b8c6d"

// Received is when all events were received.
var Received = time.Date(2025, 3, 4, 9, 0, 0, 250e6, time.UTC)

// Attack is the reference that all alerts of the manager carry.
var Attack = event.Attack{ID: "T1059.001", Tactic: "execution", Reference: "https://attack.mitre.org/techniques/T1059/001"}

// Message is the alert for one line.
func Message(t testing.TB, host, line string, signatures []string, criticality int, origin message.Origin) *nats.Msg {
	t.Helper()
	info, err := event.Scan([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	a := message.Alert{
		Endpoint: Endpoint, Hostname: host, IP: "192.0.2.21", Received: Received, Time: info.Time, Timed: info.Timed(),
		Hash: event.HashOf([]byte(line)), Line: []byte(line), Signatures: signatures, Criticality: criticality, Origin: origin,
	}
	if !a.Timed {
		a.Time = Received
	}
	if origin != message.OriginAgent {
		detection := event.GeneInfo{Signature: signatures, Criticality: criticality, ATTACK: []event.Attack{Attack}}
		if a.Line, err = event.WithGeneInfo(a.Line, &info, detection); err != nil {
			t.Fatal(err)
		}
	}
	m, err := a.Msg()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// Samples are the alerts of the sample endpoints, in the order of
// samples.Endpoints.
func Samples(t testing.TB) []*nats.Msg {
	t.Helper()
	var list []*nats.Msg
	for _, e := range samples.Endpoints() {
		for _, x := range e.Expected {
			list = append(list, Message(t, e.Hostname, string(e.Lines[x.Line]), x.Signatures, x.Criticality, message.Origin(x.Origin)))
		}
	}
	return list
}
