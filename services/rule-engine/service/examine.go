package ruleengine

import (
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/services/rule-engine/internal/detect"
)

// outcome is what a batch gives.
type outcome struct {
	alerts  []*raisedAlert
	letters []*message.DeadLetter
	// events, filtered and repeated count events.
	events, filtered, repeated int
}

// raisedAlert is an alert on its way to the stream.
type raisedAlert struct {
	key      string
	severity subject.Severity
	origin   message.Origin
	msg      *nats.Msg
	// letter makes the dead letter of the alert's event. It must be called
	// before the worker takes its next batch.
	letter func() *message.DeadLetter
}

// examine runs the rules over the lines of a batch.
func (wk *worker) examine(b *message.Batch) (*outcome, error) {
	out := &outcome{events: len(b.Lines)}
	var here map[string]struct{}
	for at, line := range b.Lines {
		found := wk.detector.Detect(line)
		if found.Unmarked && !found.Alert() {
			// Most events: they were validated when they came, and are not looked
			// at again.
			if found.Filtered {
				out.filtered++
			}
			continue
		}
		info, err := event.Scan(line)
		if err != nil {
			out.letters = append(out.letters, letter(b, at, reason(err), err.Error()))
			continue
		}
		mark := event.AgentMark(line, &info)
		if found.Filtered {
			out.filtered++
		}
		if mark == nil && !found.Alert() {
			continue
		}
		hash := event.HashOf(line)
		key := raisedKey(b.Endpoint, b.Generation, hash)
		if _, repeated := here[key]; repeated {
			out.repeated++
			continue
		}
		raised, err := wk.s.isRaised(key)
		if err != nil {
			return nil, err
		}
		if raised {
			out.repeated++
			continue
		}
		if here == nil {
			here = make(map[string]struct{})
		}
		here[key] = struct{}{}
		a, err := newAlert(b, at, hash, &info, mark, &found, wk.snap.set)
		if err != nil {
			return nil, err
		}
		m, err := a.Msg()
		if err != nil {
			return nil, err
		}
		out.alerts = append(out.alerts, &raisedAlert{
			key: key, severity: subject.SeverityOf(a.Criticality), origin: a.Origin, msg: m,
			letter: func() *message.DeadLetter {
				return letter(b, at, message.ReasonPoison, "its alert is larger than a message may be")
			},
		})
	}
	return out, nil
}

// newAlert unites what the agent and the rules found in the event of a line; at
// least one of them found something.
func newAlert(b *message.Batch, at int, hash event.Hash, info *event.Info, mark *event.Mark, found *detect.Detection, set *detect.Set) (*message.Alert, error) {
	line, received := b.Lines[at], b.ReceivedAt(at)
	a := &message.Alert{
		Endpoint: b.Endpoint, Hostname: b.Hostname, IP: b.IP, Received: received, TraceParent: b.Trace(at), Generation: b.Generation,
		Time: info.Time, Timed: info.Timed(), Hash: hash, Line: line, Origin: message.OriginAgent,
	}
	if !a.Timed {
		a.Time = received
	}
	if mark != nil {
		a.Signatures, a.Criticality, a.ATTACK = mark.Signatures, mark.Criticality, mark.ATTACK
	}
	if found.Alert() {
		a.Origin = message.OriginBoth
		if mark == nil {
			a.Origin = message.OriginManager
		}
		a.Signatures = event.Union(a.Signatures, found.Signatures)
		a.Criticality = max(a.Criticality, found.Criticality)
		a.ATTACK = event.UnionAttack(a.ATTACK, attack(found.ATTACK))
		marked, err := event.WithGeneInfo(line, info, event.GeneInfo{Signature: a.Signatures, Criticality: a.Criticality, ATTACK: a.ATTACK})
		if err != nil {
			return nil, fmt.Errorf("mark event: %w", err)
		}
		a.Line = marked
	}
	for _, name := range a.Signatures {
		if rule, ok := set.Info(name); ok {
			a.Rules = append(a.Rules, message.RuleInfo{Name: name, Criticality: rule.Criticality, ATTACK: attack(rule.ATTACK)})
		}
	}
	return a, nil
}

func attack(list []detect.Attack) []event.Attack {
	var out []event.Attack
	for _, a := range list {
		out = append(out, event.Attack(a))
	}
	return out
}

// letter makes the dead letter of one line.
func letter(b *message.Batch, at int, reason, detail string) *message.DeadLetter {
	line := b.Lines[at]
	head := line[:min(len(line), message.DeadLetterHead)]
	return &message.DeadLetter{
		Endpoint: b.Endpoint, Reason: reason, Detail: detail, Received: b.ReceivedAt(at), Generation: b.Generation,
		Line: append([]byte(nil), head...), Size: int64(len(line)), SHA256: sha256.Sum256(line),
	}
}

// reason names why a line is no event.
func reason(err error) string {
	switch {
	case errors.Is(err, event.ErrNotObject):
		return message.ReasonNotObject
	case errors.Is(err, event.ErrTooDeep):
		return message.ReasonTooDeep
	}
	return message.ReasonNotJSON
}
