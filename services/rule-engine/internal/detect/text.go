package detect

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// text gives the value that gene sees for a JSON value: the string itself, and
// for anything else what fmt's %v prints for the value encoding/json decodes
// into an empty interface. The result is part of tok, of the returned buffer, or
// fresh; it is valid UTF-8.
func text(tok, buf []byte) (val, out []byte) {
	switch tok[0] {
	case '"':
		return unquote(tok[1:len(tok)-1], buf)
	case 't', 'f':
		return tok, buf
	case 'n':
		return nilText, buf
	case '{', '[':
	default:
		return numberText(tok, buf)
	}
	var v any
	if err := json.Unmarshal(tok, &v); err != nil && !isTypeError(err) {
		return bytes.ToValidUTF8(tok, replacement), buf
	}
	return fmt.Append(nil, v), buf
}

var (
	nilText     = []byte("<nil>")
	replacement = []byte("\uFFFD")
)

// isTypeError reports the one error after which encoding/json has still decoded
// everything: a number beyond float64, which it leaves nil.
func isTypeError(err error) bool {
	var te *json.UnmarshalTypeError
	return errors.As(err, &te)
}

// numberText prints a number as fmt prints a float64.
func numberText(tok, buf []byte) (val, out []byte) {
	if isShortInteger(tok) {
		return tok, buf
	}
	f, err := strconv.ParseFloat(string(tok), 64)
	switch {
	case errors.Is(err, strconv.ErrRange):
		return nilText, buf
	case err != nil:
		return bytes.ToValidUTF8(tok, replacement), buf
	}
	start := len(buf)
	buf = strconv.AppendFloat(buf, f, 'g', -1, 64)
	return buf[start:len(buf):len(buf)], buf
}

// isShortInteger reports whether a number is an integer that fmt prints as it is
// written. From seven digits on, fmt may use an exponent.
func isShortInteger(tok []byte) bool {
	digits := tok
	if len(digits) > 0 && digits[0] == '-' {
		digits = digits[1:]
	}
	if len(digits) == 0 || len(digits) > 6 {
		return false
	}
	for _, c := range digits {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

// unquote decodes the text between the quotes of a JSON string exactly as
// encoding/json does.
func unquote(s, buf []byte) (val, out []byte) {
	if bytes.IndexByte(s, '\\') < 0 {
		if isASCII(s) || utf8.Valid(s) {
			return s, buf
		}
		return unquoteSlow(s), buf
	}
	start := len(buf)
	for rest := s; ; {
		n := bytes.IndexByte(rest, '\\')
		if n < 0 {
			buf = append(buf, rest...)
			break
		}
		buf = append(buf, rest[:n]...)
		rest = rest[n+1:]
		if len(rest) == 0 {
			break
		}
		c := rest[0]
		rest = rest[1:]
		switch c {
		case 'b':
			c = '\b'
		case 'f':
			c = '\f'
		case 'n':
			c = '\n'
		case 'r':
			c = '\r'
		case 't':
			c = '\t'
		case 'u':
			r, size := hexRune(rest)
			if size == 0 {
				return unquoteSlow(s), buf[:start]
			}
			rest = rest[size:]
			buf = utf8.AppendRune(buf, r)
			continue
		}
		buf = append(buf, c)
	}
	val = buf[start:len(buf):len(buf)]
	if !isASCII(val) && !utf8.Valid(val) {
		return unquoteSlow(s), buf[:start]
	}
	return val, buf
}

// hexRune decodes what follows \u, a surrogate pair included. Size is the number
// of bytes used, 0 when the text is malformed.
func hexRune(s []byte) (r rune, size int) {
	r, ok := hex4(s)
	if !ok {
		return 0, 0
	}
	if !utf16.IsSurrogate(r) {
		return r, 4
	}
	if len(s) >= 10 && s[4] == '\\' && s[5] == 'u' {
		if low, ok := hex4(s[6:]); ok {
			if pair := utf16.DecodeRune(r, low); pair != unicode.ReplacementChar {
				return pair, 10
			}
		}
	}
	return unicode.ReplacementChar, 4
}

func hex4(s []byte) (r rune, ok bool) {
	if len(s) < 4 {
		return 0, false
	}
	for _, c := range s[:4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

func unquoteSlow(s []byte) []byte {
	quoted := make([]byte, 0, len(s)+2)
	quoted = append(quoted, '"')
	quoted = append(quoted, s...)
	quoted = append(quoted, '"')
	var v string
	if err := json.Unmarshal(quoted, &v); err != nil {
		return bytes.ToValidUTF8(s, replacement)
	}
	return []byte(v)
}

// ones and high have the lowest, or the highest, bit of each byte of a word set.
const ones, high = 0x0101010101010101, 0x8080808080808080

func isASCII(s []byte) bool {
	for ; len(s) >= 8; s = s[8:] {
		if binary.LittleEndian.Uint64(s)&high != 0 {
			return false
		}
	}
	for _, c := range s {
		if c >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// lowerTable maps upper case ASCII letters to lower case.
var lowerTable = func() (t [256]byte) {
	for i := range t {
		t[i] = byte(i)
		if i >= 'A' && i <= 'Z' {
			t[i] += 'a' - 'A'
		}
	}
	return t
}()

// fold appends the folded form of val to buf: ASCII letters in lower case, and
// the two other runes that case folding makes equal to ASCII letters, U+017F and
// U+212A, as s and k. An ASCII word is in a text under case folding exactly if
// its folded form is in the folded text.
func fold(val, buf []byte) (folded, out []byte) {
	start := len(buf)
	buf = slices.Grow(buf, len(val))[:start+len(val)]
	folded = buf[start:len(buf):len(buf)]
	folded = folded[:len(val)]
	all, i := uint64(0), 0
	for ; len(val)-i >= 8; i += 8 {
		w := binary.LittleEndian.Uint64(val[i:])
		binary.LittleEndian.PutUint64(folded[i:], lowerWord(w))
		all |= w
	}
	for ; i < len(val); i++ {
		folded[i] = lowerTable[val[i]]
		all |= uint64(val[i])
	}
	if all&high != 0 {
		folded = foldRunes(folded)
		buf = buf[:start+len(folded)]
	}
	return folded, buf
}

// lowerWord maps the upper case ASCII letters among eight bytes to lower case. The
// sums of seven bits each tell in the eighth whether a byte is at least 'A', and
// whether it is beyond 'Z'.
func lowerWord(w uint64) uint64 {
	low := w &^ high
	upper := (low + (0x80-'A')*ones) &^ (low + (0x7f-'Z')*ones) &^ w & high
	return w | upper>>2 // 0x80>>2 is 'a' - 'A'
}

// foldRunes replaces U+017F and U+212A in place.
func foldRunes(s []byte) []byte {
	n := 0
	for i := 0; i < len(s); n++ {
		switch {
		case s[i] == 0xC5 && i+1 < len(s) && s[i+1] == 0xBF:
			s[n] = 's'
			i += 2
		case s[i] == 0xE2 && i+2 < len(s) && s[i+1] == 0x84 && s[i+2] == 0xAA:
			s[n] = 'k'
			i += 3
		default:
			s[n] = s[i]
			i++
		}
	}
	return s[:n]
}

func foldString(s string) string {
	folded, _ := fold([]byte(s), nil)
	return string(folded)
}
