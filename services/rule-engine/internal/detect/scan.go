package detect

import "bytes"

// scanner walks over the JSON text of an event without recursion, so that
// nesting costs no stack. It checks no more of the syntax than it needs: lines
// were validated when they were accepted. Malformed text ends the walk.
type scanner struct {
	b []byte
	i int
}

// space skips white space and returns the next byte, 0 at the end.
func (s *scanner) space() byte {
	for s.i < len(s.b) {
		switch c := s.b[s.i]; c {
		case ' ', '\t', '\r', '\n':
			s.i++
		default:
			return c
		}
	}
	return 0
}

// open enters an object. It reports false when the next value is none.
func (s *scanner) open() bool {
	if s.space() != '{' {
		return false
	}
	s.i++
	return true
}

// key returns the raw name of the next member of the object, without its
// quotes, and moves to the value. At the end of the object more is false and
// the object is left. Malformed text gives ok false.
func (s *scanner) key() (name []byte, more, ok bool) {
	c := s.space()
	if c == ',' {
		s.i++
		c = s.space()
	}
	if c == '}' {
		s.i++
		return nil, false, true
	}
	if c != '"' {
		return nil, false, false
	}
	start := s.i + 1
	end := stringEnd(s.b, start)
	if end < 0 {
		return nil, false, false
	}
	s.i = end + 1
	if s.space() != ':' {
		return nil, false, false
	}
	s.i++
	s.space()
	return s.b[start:end], true, true
}

// value returns the text of the next value and moves behind it.
func (s *scanner) value() (text []byte, ok bool) {
	start := s.i
	switch s.space() {
	case 0:
		return nil, false
	case '"':
		end := stringEnd(s.b, s.i+1)
		if end < 0 {
			return nil, false
		}
		s.i = end + 1
	case '{', '[':
		if !s.skip() {
			return nil, false
		}
	default:
		for s.i < len(s.b) && !isDelimiter(s.b[s.i]) {
			s.i++
		}
		if s.i == start {
			return nil, false
		}
	}
	return s.b[start:s.i], true
}

// skip moves behind an object or array.
func (s *scanner) skip() bool {
	depth := 0
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case '"':
			end := stringEnd(s.b, s.i+1)
			if end < 0 {
				return false
			}
			s.i = end
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				s.i++
				return true
			}
		}
		s.i++
	}
	return false
}

func isDelimiter(c byte) bool {
	switch c {
	case ',', '}', ']', ' ', '\t', '\r', '\n':
		return true
	}
	return false
}

// stringEnd returns the index of the quote that closes the string whose text
// starts at the given index, or -1.
func stringEnd(b []byte, start int) int {
	for from := start; ; {
		n := bytes.IndexByte(b[from:], '"')
		if n < 0 {
			return -1
		}
		end := from + n
		escapes := 0
		for k := end - 1; k >= from && b[k] == '\\'; k-- {
			escapes++
		}
		if escapes%2 == 0 {
			return end
		}
		from = end + 1
	}
}
