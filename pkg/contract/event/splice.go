package event

import (
	"bytes"
	"encoding/json"
	"time"
)

// GeneInfo is the member of /Event that carries a detection.
type GeneInfo struct {
	Signature   []string `json:"Signature"`
	Criticality int      `json:"Criticality"`
	ATTACK      []Attack `json:"ATTACK,omitempty"`
}

// EdrData is the member of /Event that tells a SIEM where an alert is from.
type EdrData struct {
	Endpoint EdrEndpoint `json:"Endpoint"`
	Event    EdrEvent    `json:"Event"`
}

// EdrEndpoint names the endpoint of an alert.
type EdrEndpoint struct {
	UUID     string `json:"UUID"`
	Hostname string `json:"Hostname"`
	IP       string `json:"IP"`
}

// EdrEvent names the event of an alert. Hash is Hash.String.
type EdrEvent struct {
	Hash        string    `json:"Hash"`
	ReceiptTime time.Time `json:"ReceiptTime"`
	Detection   bool      `json:"Detection"`
}

// Marshal encodes v as one line of JSON without escaping <, > and &.
func Marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// WithGeneInfo returns line with detection as /Event/GeneInfo. Members of a
// GeneInfo object that the agent sent and that a detection does not have are
// kept behind it; everything else of the line stays byte by byte. A line
// without an Event object gets one as its last member.
func WithGeneInfo(line []byte, info *Info, detection GeneInfo) ([]byte, error) {
	value, err := Marshal(detection)
	if err != nil {
		return nil, err
	}
	if !info.GeneInfo.Present() {
		out, _ := insert(line, info, "GeneInfo", value)
		return out, nil
	}
	if rest := otherMembers(info.GeneInfo.Of(line)); len(rest) > 0 {
		value = append(append(append(value[:len(value)-1], ','), rest...), '}')
	}
	out, _ := replace(line, info.GeneInfo, value)
	return out, nil
}

// otherMembers returns the members of a GeneInfo object that a detection does
// not set, as JSON text without braces, in their order.
func otherMembers(object []byte) []byte {
	if object[0] != '{' {
		return nil
	}
	s := scanner{b: object}
	var out []byte
	err := s.members(1, nil, func(key []byte) error {
		var value Span
		if err := s.spanned(2, &value); err != nil {
			return err
		}
		switch string(key) {
		case "Signature", "Criticality", "ATTACK":
			return nil
		}
		name, err := Marshal(string(key))
		if err != nil {
			return err
		}
		if len(out) > 0 {
			out = append(out, ',')
		}
		out = append(append(append(out, name...), ':'), value.Of(object)...)
		return nil
	})
	if err != nil {
		return nil
	}
	return out
}

// WithEdrData returns line with data as /Event/EdrData, and the span of the
// result that was added. Cutting that span out, and putting sent in its place,
// gives the line back byte by byte: sent is the EdrData that the line already
// carried, or nil.
func WithEdrData(line []byte, info *Info, data EdrData) (out []byte, added Span, sent []byte, err error) {
	value, err := Marshal(data)
	if err != nil {
		return nil, Span{}, nil, err
	}
	if info.EdrData.Present() {
		out, added = replace(line, info.EdrData, value)
		return out, added, info.EdrData.Of(line), nil
	}
	out, added = insert(line, info, "EdrData", value)
	return out, added, nil, nil
}

// Cut undoes WithEdrData.
func Cut(line []byte, added Span, sent []byte) []byte {
	out := make([]byte, 0, len(line)-(added.End-added.Start)+len(sent))
	out = append(out, line[:added.Start]...)
	out = append(out, sent...)
	return append(out, line[added.End:]...)
}

func replace(line []byte, at Span, value []byte) ([]byte, Span) {
	out := make([]byte, 0, len(line)+len(value))
	out = append(append(out, line[:at.Start]...), value...)
	added := Span{at.Start, len(out)}
	return append(out, line[at.End:]...), added
}

// insert adds a member at the end of the Event object, or a whole Event
// object at the end of the document.
func insert(line []byte, info *Info, name string, value []byte) ([]byte, Span) {
	end, empty := info.Event.End-1, info.eventEmpty
	member := make([]byte, 0, len(value)+len(name)+16)
	if !info.Event.Present() {
		end, empty = bytes.LastIndexByte(line, '}'), info.docEmpty
		member = append(member, `"Event":{`...)
	}
	member = append(append(append(append(member, '"'), name...), `":`...), value...)
	if !info.Event.Present() {
		member = append(member, '}')
	}
	out := make([]byte, 0, len(line)+len(member)+1)
	out = append(out, line[:end]...)
	start := len(out)
	if !empty {
		out = append(out, ',')
	}
	out = append(out, member...)
	added := Span{start, len(out)}
	return append(out, line[end:]...), added
}
