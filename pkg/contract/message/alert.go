package message

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
)

// Origin tells who found what an alert reports.
type Origin string

// The origins.
const (
	OriginAgent   Origin = "agent"
	OriginManager Origin = "manager"
	OriginBoth    Origin = "both"
)

// Bounds of headers, in bytes: JetStream refuses more than 64 KiB in all.
const (
	maxNames = 24 << 10
	maxRules = 24 << 10
	maxSent  = 6 << 10
	maxText  = 1 << 10
)

// RuleInfo is what the manager knows of a rule that an alert names: what a
// report needs. Names that the manager does not know have none.
type RuleInfo struct {
	Name        string         `json:"name"`
	Criticality int            `json:"criticality"`
	ATTACK      []event.Attack `json:"attack,omitempty"`
}

// Alert is an event that an agent or the rule-engine marked, as one message
// on edr.alerts.<severity>.<endpoint>.
type Alert struct {
	Endpoint, Hostname, IP string
	// Received is when the manager received the event.
	Received time.Time
	// Time is where the alert stands in time: the event's own time or, when
	// Timed is false, its receipt.
	Time  time.Time
	Timed bool
	// Hash is the hash of the line as the endpoint sent it.
	Hash event.Hash
	// Line is the event as it is stored: the sent bytes with the detection.
	Line        []byte
	Signatures  []string
	Criticality int
	Origin      Origin
	Rules       []RuleInfo
	// ATTACK are the references of all Signatures. Msg puts them into the
	// payload of an alert whose line has no GeneInfo to carry them; ParseAlert
	// does not give them back.
	ATTACK      []event.Attack
	TraceParent string
	// Generation is that of the batch the event came in.
	Generation uint64
}

// MsgID returns the id of the alert of an endpoint's event, the same however
// often and in whatever batch of a generation the event comes.
func MsgID(endpoint string, generation uint64, hash event.Hash) string {
	if generation > 0 {
		return endpoint + ":" + strconv.FormatUint(generation, 10) + ":" + hash.String()
	}
	return endpoint + ":" + hash.String()
}

// Msg makes the alert's message: the line as a SIEM gets it, and headers. The
// payload has /Event/EdrData and, where /Event/GeneInfo does not say what the
// alert says (the agent's mark stands elsewhere, or its criticality is out of
// bounds), that one as well.
func (a *Alert) Msg() (*nats.Msg, error) {
	data, err := a.payload(true)
	if err != nil {
		return nil, fmt.Errorf("alert: %w", err)
	}
	added, replaced := difference(a.Line, data)
	if len(replaced) > maxSent {
		if data, err = a.payload(false); err != nil {
			return nil, fmt.Errorf("alert: %w", err)
		}
		added, replaced = difference(a.Line, data)
	}
	rules, err := a.rulesHeader()
	if err != nil {
		return nil, fmt.Errorf("alert: %w", err)
	}
	names, cut := bounded(a.Signatures)
	m := nats.NewMsg(subject.Alerts(subject.SeverityOf(a.Criticality), a.Endpoint))
	m.Data = data
	h := m.Header
	h.Set(nats.MsgIdHdr, MsgID(a.Endpoint, a.Generation, a.Hash))
	h.Set(HeaderEndpoint, a.Endpoint)
	h.Set(HeaderCriticality, strconv.Itoa(a.Criticality))
	h.Set(HeaderSignatures, joinNames(names))
	if cut {
		h.Set(HeaderCut, "true")
	}
	h.Set(HeaderOrigin, string(a.Origin))
	h.Set(HeaderReceived, a.Received.UTC().Format(time.RFC3339Nano))
	h.Set(HeaderTime, a.Time.Format(time.RFC3339Nano))
	h.Set(HeaderTimed, strconv.FormatBool(a.Timed))
	h.Set(HeaderHash, a.Hash.String())
	h.Set(HeaderRules, rules)
	h.Set(HeaderAdded, strconv.Itoa(added.Start)+"-"+strconv.Itoa(added.End))
	if len(replaced) > 0 {
		h.Set(HeaderSent, base64.StdEncoding.EncodeToString(replaced))
	}
	setUnlessEmpty(h, HeaderHostname, a.Hostname)
	setUnlessEmpty(h, HeaderIP, a.IP)
	setUnlessEmpty(h, HeaderTraceParent, a.TraceParent)
	setGeneration(h, a.Generation)
	return m, nil
}

// bounded returns as many names as the header of signatures holds, and
// whether some are left out. The payload has all of them.
func bounded(names []string) (list []string, cut bool) {
	size := 0
	for i, n := range names {
		if size += 3*len(n) + 1; size > maxNames { // percent-encoded at worst
			return names[:i], true
		}
	}
	return names, false
}

// rulesHeader returns what reports need of the rules, as JSON: the technique
// and tactic of each reference, and as many rules as a header holds.
func (a *Alert) rulesHeader() (string, error) {
	out := []byte{'['}
	for _, r := range a.Rules {
		short := RuleInfo{Name: r.Name, Criticality: r.Criticality}
		for _, t := range r.ATTACK {
			short.ATTACK = append(short.ATTACK, event.Attack{ID: t.ID, Tactic: t.Tactic})
		}
		text, err := event.Marshal(short)
		if err != nil {
			return "", err
		}
		if len(out)+len(text) > maxRules {
			break
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(out, text...)
	}
	return string(append(out, ']')), nil
}

// payload returns the line with what is added for the SIEM alone. Unless
// replace is set, members of that name which the line has are left where they
// are and ours stand behind them, the last of several being the one that
// counts.
func (a *Alert) payload(replace bool) ([]byte, error) {
	line := a.Line
	info, err := event.Scan(line)
	if err != nil {
		return nil, err
	}
	mark := info
	if !replace {
		info.GeneInfo, info.EdrData = event.Span{}, event.Span{}
	}
	if a.Origin == OriginAgent && !event.GeneInfoSays(line, &mark, a.Signatures, a.Criticality) {
		line, err = event.WithGeneInfo(line, &info, event.GeneInfo{Signature: a.Signatures, Criticality: a.Criticality, ATTACK: a.ATTACK})
		if err != nil {
			return nil, err
		}
		if info, err = event.Scan(line); err != nil {
			return nil, err
		}
		if !replace {
			info.EdrData = event.Span{}
		}
	}
	line, _, _, err = event.WithEdrData(line, &info, event.EdrData{
		Endpoint: event.EdrEndpoint{UUID: a.Endpoint, Hostname: a.Hostname, IP: a.IP},
		Event:    event.EdrEvent{Hash: a.Hash.String(), ReceiptTime: a.Received.UTC(), Detection: true},
	})
	return line, err
}

// difference returns the one span of to outside of which it is the same as
// from, and the bytes of from in its place.
func difference(from, to []byte) (added event.Span, replaced []byte) {
	n := min(len(from), len(to))
	prefix := 0
	for prefix < n && from[prefix] == to[prefix] {
		prefix++
	}
	suffix := 0
	for suffix < n-prefix && from[len(from)-1-suffix] == to[len(to)-1-suffix] {
		suffix++
	}
	return event.Span{Start: prefix, End: len(to) - suffix}, from[prefix : len(from)-suffix]
}

// ParseAlert reads a message of the stream ALERTS back. The Line it returns
// is the stored form, byte by byte, without what was added for the SIEM.
func ParseAlert(h nats.Header, data []byte) (Alert, error) {
	a := Alert{
		Endpoint: h.Get(HeaderEndpoint), Hostname: h.Get(HeaderHostname), IP: h.Get(HeaderIP),
		Signatures: splitNames(h.Get(HeaderSignatures)), Origin: Origin(h.Get(HeaderOrigin)),
		Timed: h.Get(HeaderTimed) == "true", TraceParent: h.Get(HeaderTraceParent),
		Generation: GenerationOf(h),
	}
	var err error
	fail := func(what string, err error) (Alert, error) {
		return Alert{}, fmt.Errorf("alert: header %s: %w", what, err)
	}
	if a.Received, err = time.Parse(time.RFC3339Nano, h.Get(HeaderReceived)); err != nil {
		return fail(HeaderReceived, err)
	}
	if a.Time, err = time.Parse(time.RFC3339Nano, h.Get(HeaderTime)); err != nil {
		return fail(HeaderTime, err)
	}
	if a.Hash, err = event.ParseHash(h.Get(HeaderHash)); err != nil {
		return fail(HeaderHash, err)
	}
	if a.Criticality, err = strconv.Atoi(h.Get(HeaderCriticality)); err != nil {
		return fail(HeaderCriticality, err)
	}
	if err = json.Unmarshal([]byte(h.Get(HeaderRules)), &a.Rules); err != nil {
		return fail(HeaderRules, err)
	}
	var added event.Span
	start, end, _ := strings.Cut(h.Get(HeaderAdded), "-")
	if added.Start, err = strconv.Atoi(start); err != nil {
		return fail(HeaderAdded, err)
	}
	if added.End, err = strconv.Atoi(end); err != nil {
		return fail(HeaderAdded, err)
	}
	if added.Start < 0 || added.End < added.Start || added.End > len(data) {
		return fail(HeaderAdded, fmt.Errorf("%q is outside of the message", h.Get(HeaderAdded)))
	}
	replaced, err := base64.StdEncoding.DecodeString(h.Get(HeaderSent))
	if err != nil {
		return fail(HeaderSent, err)
	}
	a.Line = event.Cut(data, added, replaced)
	if h.Get(HeaderCut) != "" {
		info, err := event.Scan(data)
		if err != nil {
			return fail(HeaderCut, err)
		}
		if mark := event.AgentMark(data, &info); mark != nil {
			a.Signatures = mark.Signatures
		}
	}
	return a, nil
}

// joinNames writes names as a comma-separated list. A name with commas,
// percent signs, control characters or blanks at its ends, which headers lose,
// is percent-encoded.
func joinNames(names []string) string {
	out := make([]string, len(names))
	for i, n := range names {
		if n != strings.TrimSpace(n) || strings.ContainsFunc(n, func(r rune) bool { return r < ' ' || r == ',' || r == '%' || r == 0x7f }) {
			n = url.PathEscape(n)
			n = strings.ReplaceAll(n, ",", "%2C")
		}
		out[i] = n
	}
	return strings.Join(out, ",")
}

func splitNames(s string) []string {
	if s == "" {
		return nil
	}
	names := strings.Split(s, ",")
	for i, n := range names {
		if u, err := url.PathUnescape(n); err == nil {
			names[i] = u
		}
	}
	return names
}
