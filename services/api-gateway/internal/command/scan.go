package command

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Errors of a document that is no JSON.
var (
	errEnd    = errors.New("unexpected end of JSON input")
	errString = errors.New("invalid character in string literal")
)

// hoister reads a JSON document and takes long strings out of it, so that
// what is left can be held in memory. It knows strings and which member they
// are the value of, nothing more: the document that is left is to be checked
// by package json. A member whose name is written with escapes is not
// recognised and stays, which costs memory alone.
type hoister struct {
	r *bufio.Reader
	// keep is the length in bytes up to which a string stays.
	keep int
	// wanted tells whether long strings of a member are taken out.
	wanted func(member string) bool
	// take is given such a string as it is written, without its quotes. It
	// reads to the end and returns the text to stand in its place.
	take func(member string, raw io.Reader) (string, error)
	// grow is asked before the document that is left takes n more bytes.
	grow func(n int) error
}

// run returns the document that is left.
func (h *hoister) run() ([]byte, error) {
	var doc []byte
	member, last := "", ""
	charged := 0
	charge := func(n int) error {
		if charged -= n; charged >= 0 {
			return nil
		}
		const step = 64 << 10
		more := max(step, -charged)
		charged += more
		return h.grow(more)
	}
	var head bytes.Buffer
	for {
		b, err := h.r.ReadByte()
		if err == io.EOF {
			return doc, nil
		} else if err != nil {
			return nil, err
		}
		if err := charge(1); err != nil {
			return nil, err
		}
		doc = append(doc, b)
		switch b {
		case ':':
			member = last
			continue
		case ',', '{', '}', '[', ']':
			member = ""
			continue
		case '"':
		default:
			continue
		}
		raw := &rawString{r: h.r}
		head.Reset()
		_, err = io.CopyN(&head, raw, int64(h.keep)+1)
		switch {
		case err == io.EOF:
			last = head.String()
			if err := charge(len(last) + 1); err != nil {
				return nil, err
			}
			doc = append(append(doc, last...), '"')
			continue
		case err != nil:
			return nil, err
		}
		last = ""
		rest := io.MultiReader(&head, raw)
		if h.wanted(member) {
			text, err := h.take(member, rest)
			if err != nil {
				return nil, err
			}
			doc = append(append(doc, text...), '"')
			continue
		}
		for buf := make([]byte, 32<<10); ; {
			n, err := rest.Read(buf)
			if err := charge(n); err != nil {
				return nil, err
			}
			doc = append(doc, buf[:n]...)
			if err == io.EOF {
				break
			} else if err != nil {
				return nil, err
			}
		}
		doc = append(doc, '"')
	}
}

// rawString reads a string behind its opening quote, as it is written, and
// swallows the closing one. It makes sure that the string is valid JSON.
type rawString struct {
	r    *bufio.Reader
	done bool
	// escape is 0 outside of an escape, 1 behind the backslash, and 2 to 5
	// at the hex digits of \u.
	escape int
}

// Read implements io.Reader.
func (s *rawString) Read(p []byte) (int, error) {
	for n := range p {
		if s.done {
			return n, eofIf(n == 0)
		}
		b, err := s.r.ReadByte()
		if err == io.EOF {
			return n, errEnd
		} else if err != nil {
			return n, err
		}
		switch {
		case s.escape == 0 && b == '"':
			s.done = true
			return n, eofIf(n == 0)
		case s.escape == 0 && b == '\\':
			s.escape = 1
		case s.escape == 0 && b < 0x20:
			return n, errString
		case s.escape == 1:
			if !strings.ContainsRune(`"\/bfnrtu`, rune(b)) {
				return n, errString
			}
			s.escape = 0
			if b == 'u' {
				s.escape = 2
			}
		case s.escape > 1:
			if _, ok := hexDigit(b); !ok {
				return n, errString
			}
			s.escape = (s.escape + 1) % 6
		}
		p[n] = b
	}
	return len(p), nil
}

func eofIf(yes bool) error {
	if yes {
		return io.EOF
	}
	return nil
}

func hexDigit(b byte) (rune, bool) {
	switch {
	case b >= '0' && b <= '9':
		return rune(b - '0'), true
	case b >= 'a' && b <= 'f':
		return rune(b-'a') + 10, true
	case b >= 'A' && b <= 'F':
		return rune(b-'A') + 10, true
	}
	return 0, false
}

// plainText undoes the escapes of a valid string as far as they stand for
// ASCII, which is enough for base64.
type plainText struct{ r *bufio.Reader }

// Read implements io.Reader.
func (t *plainText) Read(p []byte) (int, error) {
	for n := range p {
		b, err := t.r.ReadByte()
		if err != nil {
			return n, endIf(err, n)
		}
		if b == '\\' {
			if b, err = t.escaped(); err != nil {
				return n, err
			}
		}
		p[n] = b
	}
	return len(p), nil
}

// endIf keeps the end of the text for the next read when there is something
// to return in this one.
func endIf(err error, n int) error {
	if err == io.EOF && n > 0 {
		return nil
	}
	return err
}

func (t *plainText) escaped() (byte, error) {
	b, err := t.r.ReadByte()
	if err != nil {
		return 0, err
	}
	if i := strings.IndexByte("bfnrt", b); i >= 0 {
		return "\b\f\n\r\t"[i], nil
	}
	if b != 'u' {
		return b, nil
	}
	var code rune
	for range 4 {
		if b, err = t.r.ReadByte(); err != nil {
			return 0, err
		}
		digit, _ := hexDigit(b) // the string is valid
		code = code<<4 | digit
	}
	if code >= 0x80 {
		return 0, fmt.Errorf("illegal base64 data: %q", code)
	}
	return byte(code), nil
}
