package event

import (
	"encoding/binary"
	"errors"
	"math/bits"
	"time"
	"unicode/utf8"
)

// MaxDepth is the deepest nesting of arrays and objects that an event may
// have, the limit of encoding/json. It bounds the stack of every parser.
const MaxDepth = 10000

// Errors that Scan returns for a line that is no event.
var (
	// ErrNotJSON means that the line is not one JSON document.
	ErrNotJSON = errors.New("not JSON")
	// ErrNotObject means that the line is JSON but not an object.
	ErrNotObject = errors.New("not a JSON object")
	// ErrTooDeep means that the line is nested deeper than MaxDepth.
	ErrTooDeep = errors.New("nested too deeply")
)

// Span is a half-open range of bytes of a line. The zero Span is absent: no
// value of an event starts at offset 0.
type Span struct{ Start, End int }

// Present tells whether the span was found.
func (s Span) Present() bool { return s.End > 0 }

// Of returns the bytes of the span within line.
func (s Span) Of(line []byte) []byte { return line[s.Start:s.End] }

// Info is what one pass over an event's bytes finds. Where a member stands
// several times the last one counts, as in encoding/json.
type Info struct {
	// Time is the event's own time, the zero Time when it has none that is
	// usable: /Event/System/TimeCreated/SystemTime or, for Kunai,
	// /info/utc_time, in RFC 3339.
	Time time.Time
	// Event is the value of the member Event when it is an object.
	Event Span
	// GeneInfo, Detection and EdrData are the values of these members of
	// Event, whatever their type.
	GeneInfo, Detection, EdrData Span
	// Kunai is the value of the top-level member detection.
	Kunai Span
	// empty tells whether the document and the Event object have no members.
	docEmpty, eventEmpty bool
	// systemTime and utcTime are the raw strings the time is taken from.
	systemTime, utcTime Span
}

// Timed tells whether the event has a usable time of its own.
func (i *Info) Timed() bool { return !i.Time.IsZero() }

// Scan validates that line is one JSON object, as strictly as encoding/json
// does, and returns what it found on the way. It allocates only for the rare
// member names that are written with escapes.
func Scan(line []byte) (Info, error) {
	s := scanner{b: line}
	s.space()
	if s.i < len(s.b) && s.b[s.i] != '{' {
		if err := s.value(1); err != nil {
			return Info{}, err
		}
		if s.space(); s.i != len(s.b) {
			return Info{}, ErrNotJSON
		}
		return Info{}, ErrNotObject
	}
	if err := s.document(); err != nil {
		return Info{}, err
	}
	if s.space(); s.i != len(s.b) {
		return Info{}, ErrNotJSON
	}
	s.info.Time = s.time()
	return s.info, nil
}

type scanner struct {
	b    []byte
	i    int
	info Info
}

// time reads the two places an event's time may stand in.
func (s *scanner) time() time.Time {
	for _, span := range [...]Span{s.info.systemTime, s.info.utcTime} {
		if !span.Present() {
			continue
		}
		if t, err := time.Parse(time.RFC3339Nano, string(span.Of(s.b))); err == nil && !t.IsZero() {
			return t
		}
	}
	return time.Time{}
}

func (s *scanner) document() error {
	return s.members(1, &s.info.docEmpty, func(key []byte) error {
		switch string(key) {
		case "Event":
			s.info.Event, s.info.GeneInfo, s.info.Detection, s.info.EdrData, s.info.systemTime = Span{}, Span{}, Span{}, Span{}, Span{}
			start, object := s.peekObject()
			if !object {
				return s.value(2)
			}
			if err := s.event(); err != nil {
				return err
			}
			s.info.Event = Span{start, s.i}
			return nil
		case "detection":
			return s.spanned(2, &s.info.Kunai)
		case "info":
			s.info.utcTime = Span{}
			if _, object := s.peekObject(); object {
				return s.members(2, nil, func(key []byte) error {
					if string(key) == "utc_time" {
						return s.stringSpan(3, &s.info.utcTime)
					}
					return s.value(3)
				})
			}
		}
		return s.value(2)
	})
}

func (s *scanner) event() error {
	return s.members(2, &s.info.eventEmpty, func(key []byte) error {
		switch string(key) {
		case "GeneInfo":
			return s.spanned(3, &s.info.GeneInfo)
		case "Detection":
			return s.spanned(3, &s.info.Detection)
		case "EdrData":
			return s.spanned(3, &s.info.EdrData)
		case "System":
			s.info.systemTime = Span{}
			if _, object := s.peekObject(); object {
				return s.members(3, nil, s.system)
			}
		}
		return s.value(3)
	})
}

func (s *scanner) system(key []byte) error {
	if string(key) == "TimeCreated" {
		s.info.systemTime = Span{}
		if _, object := s.peekObject(); object {
			return s.members(4, nil, func(key []byte) error {
				if string(key) == "SystemTime" {
					return s.stringSpan(5, &s.info.systemTime)
				}
				return s.value(5)
			})
		}
	}
	return s.value(4)
}

// peekObject skips white space and tells where the next value starts and
// whether it is an object.
func (s *scanner) peekObject() (start int, object bool) {
	s.space()
	return s.i, s.i < len(s.b) && s.b[s.i] == '{'
}

// spanned skips a value and records where it stands.
func (s *scanner) spanned(depth int, into *Span) error {
	s.space()
	start := s.i
	if err := s.value(depth); err != nil {
		return err
	}
	*into = Span{start, s.i}
	return nil
}

// stringSpan records the inside of a string without escapes; any other value
// clears the span, for the last of several members counts.
func (s *scanner) stringSpan(depth int, into *Span) error {
	var whole Span
	if err := s.spanned(depth, &whole); err != nil {
		return err
	}
	*into = Span{}
	if s.b[whole.Start] == '"' && whole.End-whole.Start > 2 {
		*into = Span{whole.Start + 1, whole.End - 1}
	}
	return nil
}

// members walks over an object's members; each must consume its value.
func (s *scanner) members(depth int, empty *bool, each func(key []byte) error) error {
	if depth > MaxDepth {
		return ErrTooDeep
	}
	s.i++ // the opening brace
	s.space()
	if empty != nil {
		*empty = s.i < len(s.b) && s.b[s.i] == '}'
	}
	if s.i < len(s.b) && s.b[s.i] == '}' {
		s.i++
		return nil
	}
	for {
		s.space()
		if s.i >= len(s.b) || s.b[s.i] != '"' {
			return ErrNotJSON
		}
		start := s.i + 1
		escaped, err := s.string()
		if err != nil {
			return err
		}
		key := s.b[start : s.i-1]
		if escaped {
			key = unescape(key)
		}
		s.space()
		if s.i >= len(s.b) || s.b[s.i] != ':' {
			return ErrNotJSON
		}
		s.i++
		if err := each(key); err != nil {
			return err
		}
		s.space()
		if s.i >= len(s.b) {
			return ErrNotJSON
		}
		switch s.b[s.i] {
		case ',':
			s.i++
		case '}':
			s.i++
			return nil
		default:
			return ErrNotJSON
		}
	}
}

// value validates and skips any value.
func (s *scanner) value(depth int) error {
	s.space()
	if s.i >= len(s.b) {
		return ErrNotJSON
	}
	switch c := s.b[s.i]; {
	case c == '"':
		_, err := s.string()
		return err
	case c == '{':
		return s.members(depth, nil, func([]byte) error { return s.value(depth + 1) })
	case c == '[':
		return s.array(depth)
	case c == 't':
		return s.literal("true")
	case c == 'f':
		return s.literal("false")
	case c == 'n':
		return s.literal("null")
	case c == '-' || (c >= '0' && c <= '9'):
		return s.number()
	}
	return ErrNotJSON
}

func (s *scanner) array(depth int) error {
	if depth > MaxDepth {
		return ErrTooDeep
	}
	s.i++
	s.space()
	if s.i < len(s.b) && s.b[s.i] == ']' {
		s.i++
		return nil
	}
	for {
		if err := s.value(depth + 1); err != nil {
			return err
		}
		s.space()
		if s.i >= len(s.b) {
			return ErrNotJSON
		}
		switch s.b[s.i] {
		case ',':
			s.i++
		case ']':
			s.i++
			return nil
		default:
			return ErrNotJSON
		}
	}
}

func (s *scanner) literal(word string) error {
	if len(s.b)-s.i < len(word) || string(s.b[s.i:s.i+len(word)]) != word {
		return ErrNotJSON
	}
	s.i += len(word)
	return nil
}

func (s *scanner) digits() bool {
	start := s.i
	for s.i < len(s.b) && s.b[s.i] >= '0' && s.b[s.i] <= '9' {
		s.i++
	}
	return s.i > start
}

func (s *scanner) number() error {
	if s.b[s.i] == '-' {
		s.i++
	}
	switch {
	case s.i < len(s.b) && s.b[s.i] == '0':
		s.i++
	case !s.digits():
		return ErrNotJSON
	}
	if s.i < len(s.b) && s.b[s.i] == '.' {
		s.i++
		if !s.digits() {
			return ErrNotJSON
		}
	}
	if s.i < len(s.b) && (s.b[s.i] == 'e' || s.b[s.i] == 'E') {
		s.i++
		if s.i < len(s.b) && (s.b[s.i] == '+' || s.b[s.i] == '-') {
			s.i++
		}
		if !s.digits() {
			return ErrNotJSON
		}
	}
	return nil
}

// plain marks the bytes that need no look within a string, simple those that may
// follow a backslash and stand for one character.
var plain, simple = func() (p, e [256]bool) {
	for c := 0x20; c < 256; c++ {
		p[c] = c != '"' && c != '\\'
	}
	for _, c := range `"\/bfnrt` {
		e[c] = true
	}
	return p, e
}()

// special returns the place of the first byte of b, from i on, that is not plain,
// len(b) if there is none. It looks at eight bytes at a time; the tests for a zero
// byte and for one less than n in a word are those of Hacker's Delight, 6-1; the
// lowest byte they mark is right.
func special(b []byte, i int) int {
	const ones, high = 0x0101010101010101, 0x8080808080808080
	for ; len(b)-i >= 8; i += 8 {
		w := binary.LittleEndian.Uint64(b[i:])
		quote, slash := w^ones*'"', w^ones*'\\'
		found := ((quote-ones)&^quote | (slash-ones)&^slash | (w-ones*0x20)&^w) & high
		if found != 0 {
			return i + bits.TrailingZeros64(found)/8
		}
	}
	for i < len(b) && plain[b[i]] {
		i++
	}
	return i
}

// string skips a string, the scanner standing on its opening quote, and tells
// whether it holds escapes.
func (s *scanner) string() (escaped bool, err error) {
	b := s.b
	i := special(b, s.i+1)
	for i < len(b) && b[i] == '\\' {
		escaped = true
		switch i++; {
		case i < len(b) && simple[b[i]]:
			i++
		case len(b)-i >= 5 && b[i] == 'u' && hexDigit(b[i+1])|hexDigit(b[i+2])|hexDigit(b[i+3])|hexDigit(b[i+4]) >= 0:
			i += 5
		default:
			return false, ErrNotJSON
		}
		i = special(b, i)
	}
	if i >= len(b) || b[i] != '"' { // the end, or a control character
		return false, ErrNotJSON
	}
	s.i = i + 1
	return escaped, nil
}

func (s *scanner) space() {
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case ' ', '\t', '\r', '\n':
			s.i++
		default:
			return
		}
	}
}

func hexDigit(c byte) rune {
	switch {
	case c >= '0' && c <= '9':
		return rune(c - '0')
	case c >= 'a' && c <= 'f':
		return rune(c - 'a' + 10)
	case c >= 'A' && c <= 'F':
		return rune(c - 'A' + 10)
	}
	return -1
}

// unescape decodes a validated string's escapes. Surrogates become U+FFFD:
// none of the names that are looked for holds one.
func unescape(s []byte) []byte {
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			out = append(out, s[i])
			continue
		}
		i++
		switch c := s[i]; c {
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			var r rune
			for _, h := range s[i+1 : i+5] {
				r = r<<4 | hexDigit(h)
			}
			out = utf8.AppendRune(out, r)
			i += 4
		default:
			out = append(out, c)
		}
	}
	return out
}
