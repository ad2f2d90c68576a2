package detect

import (
	"encoding/json"
	"strconv"
	"unicode/utf8"

	"github.com/0xrawsec/gene/v2/engine"
)

// fieldTable lists the fields that the rules of a set read.
type fieldTable struct {
	// index holds the members of /Event/EventData.
	index map[string]int32
	paths []*engine.XPath
	// odd says which fields are not plain members of EventData. They are read
	// from the decoded event, as gene does.
	odd []bool
}

func newFieldTable() *fieldTable {
	return &fieldTable{index: make(map[string]int32)}
}

// intern returns the number of the field at the given path.
func (t *fieldTable) intern(path *engine.XPath) int32 {
	if p := path.Path; len(p) == 3 && p[0] == "Event" && p[1] == "EventData" {
		if id, ok := t.index[p[2]]; ok {
			return id
		}
		id := t.add(path, false)
		t.index[p[2]] = id
		return id
	}
	for id, have := range t.paths {
		if t.odd[id] && have.Equal(path) {
			return int32(id)
		}
	}
	return t.add(path, true)
}

func (t *fieldTable) add(path *engine.XPath, odd bool) int32 {
	t.paths = append(t.paths, path)
	t.odd = append(t.odd, odd)
	return int32(len(t.paths) - 1)
}

type valueState uint8

const (
	// stateUnset: the event has no such field, or an odd one was not read yet.
	stateUnset valueState = iota
	// stateMissing: an odd field was looked for and is not there.
	stateMissing
	stateRaw
	stateText
	stateFolded
)

// value is one field of the current event.
type value struct {
	state  valueState
	raw    []byte
	text   []byte
	folded []byte
}

// event gives access to the fields of one line. It is reused for the next line.
type event struct {
	table  *fieldTable
	line   []byte
	values []value
	// touched lists the entries of values that are in use. One may be listed
	// twice.
	touched []int32
	buf     []byte

	channel  []byte
	id       []byte
	computer []byte

	decoded engine.GenericEvent
	isRead  bool

	// unmarked is true when the line was read to its end and has no member in
	// which an agent marks events.
	unmarked bool
}

func newEvent(table *fieldTable) *event {
	return &event{table: table, values: make([]value, len(table.paths))}
}

// maxKept bounds the buffer kept from one event to the next.
const maxKept = 1 << 20

// load notes where the fields of a line are. It reports false when the line is
// no JSON object.
func (e *event) load(line []byte) bool {
	e.release()
	e.line = line
	s := scanner{b: line}
	if !s.open() {
		return false
	}
	e.unmarked = true
	for {
		name, more, ok := s.key()
		if !ok {
			return false
		}
		if !more {
			e.unmarked = e.unmarked && s.space() == 0
			return true
		}
		if name := e.name(name); string(name) != "Event" {
			e.unmarked = e.unmarked && string(name) != "detection"
			if _, ok := s.value(); !ok {
				return false
			}
			continue
		}
		// The last member of a name counts, as in encoding/json.
		e.forget()
		if !e.loadEvent(&s) {
			return false
		}
	}
}

// release lets go of the line, which may be part of a much larger buffer.
func (e *event) release() {
	e.forget()
	e.line, e.decoded, e.isRead, e.unmarked = nil, nil, false, false
	if cap(e.buf) > maxKept {
		e.buf = nil
	}
	e.buf = e.buf[:0]
}

// forget drops what is known of the members of /Event.
func (e *event) forget() {
	e.channel, e.id, e.computer = nil, nil, nil
	e.forgetData()
}

// forgetData drops what is known of the members of /Event/EventData.
func (e *event) forgetData() {
	for _, id := range e.touched {
		e.values[id] = value{}
	}
	e.touched = e.touched[:0]
}

func (e *event) loadEvent(s *scanner) bool {
	if s.space() != '{' {
		_, ok := s.value()
		return ok
	}
	s.open()
	for {
		name, more, ok := s.key()
		if !ok || !more {
			return ok
		}
		switch string(e.name(name)) {
		case "EventData":
			e.forgetData()
			ok = e.loadData(s)
		case "System":
			e.channel, e.id, e.computer = nil, nil, nil
			ok = e.loadSystem(s)
		case "GeneInfo", "Detection":
			e.unmarked = false
			_, ok = s.value()
		default:
			_, ok = s.value()
		}
		if !ok {
			return false
		}
	}
}

func (e *event) loadSystem(s *scanner) bool {
	if s.space() != '{' {
		_, ok := s.value()
		return ok
	}
	s.open()
	for {
		name, more, ok := s.key()
		if !ok || !more {
			return ok
		}
		tok, ok := s.value()
		if !ok {
			return false
		}
		switch string(e.name(name)) {
		case "Channel":
			e.channel = tok
		case "EventID":
			e.id = tok
		case "Computer":
			e.computer = tok
		}
	}
}

func (e *event) loadData(s *scanner) bool {
	if s.space() != '{' {
		_, ok := s.value()
		return ok
	}
	s.open()
	for {
		name, more, ok := s.key()
		if !ok || !more {
			return ok
		}
		tok, ok := s.value()
		if !ok {
			return false
		}
		id, ok := e.table.index[string(e.name(name))]
		if !ok {
			continue
		}
		e.values[id] = value{state: stateRaw, raw: tok}
		e.touched = append(e.touched, id)
	}
}

// name decodes the raw name of a member.
func (e *event) name(raw []byte) []byte {
	for _, c := range raw {
		if c == '\\' || c >= utf8.RuneSelf {
			raw, e.buf = unquote(raw, e.buf)
			return raw
		}
	}
	return raw
}

// field returns a field, nil when the event does not have it.
func (e *event) field(id int32) *value {
	v := &e.values[id]
	switch v.state {
	case stateUnset:
		if !e.table.odd[id] {
			return nil
		}
		return e.oddField(id)
	case stateMissing:
		return nil
	case stateRaw:
		v.text, e.buf = text(v.raw, e.buf)
		v.state = stateText
	}
	return v
}

// fold returns the folded form of a value.
func (e *event) fold(v *value) []byte {
	if v.state != stateFolded {
		v.folded, e.buf = fold(v.text, e.buf)
		v.state = stateFolded
	}
	return v.folded
}

// oddField reads a field that is no plain member of EventData.
func (e *event) oddField(id int32) *value {
	v := &e.values[id]
	e.touched = append(e.touched, id)
	s, ok := engine.EventGetString(e.generic(), e.table.paths[id])
	if !ok {
		v.state = stateMissing
		return nil
	}
	v.text, v.state = []byte(s), stateText
	return v
}

// generic decodes the event as gene's callers do. A number beyond float64 is
// read as null.
func (e *event) generic() engine.GenericEvent {
	if !e.isRead {
		e.isRead = true
		var g engine.GenericEvent
		if err := json.Unmarshal(e.line, &g); err == nil || isTypeError(err) {
			e.decoded = g
		}
	}
	return e.decoded
}

// systemText returns a member of /Event/System as text, empty when it is absent.
func (e *event) systemText(tok []byte) []byte {
	if tok == nil {
		return nil
	}
	val, buf := text(tok, e.buf)
	e.buf = buf
	return val
}

// eventID returns the event id as gene reads it, 0 when there is none.
func (e *event) eventID() int64 {
	s := e.systemText(e.id)
	if len(s) > 0 && len(s) < 10 && s[0] != '0' {
		id := int64(0)
		for _, c := range s {
			if c < '0' || c > '9' {
				id = -1
				break
			}
			id = id*10 + int64(c-'0')
		}
		if id >= 0 {
			return id
		}
	}
	// Gene ignores the error, with which a number out of range is the nearest
	// one in range.
	id, _ := strconv.ParseInt(string(s), 0, 32)
	return id
}
