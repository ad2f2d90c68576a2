package gateway

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// maxLinePiece is the most of a line that is in memory, in bytes.
const maxLinePiece = 64 << 10

// readLines calls f with the lines of a container's content, as
// message.DecodeContainer reads them. A line longer than maxLinePiece comes in
// pieces, of which end marks the last; no piece ends within a character.
func readLines(r io.Reader, f func(piece []byte, end bool) error) error {
	in := bufio.NewReaderSize(r, maxLinePiece)
	var buf []byte
	within := false
	for {
		part, err := in.ReadSlice('\n')
		buf = append(buf, part...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			n := len(buf) - undecided(buf)
			if err := f(buf[:n], false); err != nil {
				return err
			}
			buf, within = append(buf[:0], buf[n:]...), true
			continue
		case err != nil && !errors.Is(err, io.EOF):
			return err
		case err != nil && len(buf) == 0 && !within:
			return nil
		}
		if err := f(bytes.TrimSuffix(bytes.TrimSuffix(buf, []byte("\n")), []byte("\r")), true); err != nil {
			return err
		}
		if err != nil {
			return nil
		}
		buf, within = buf[:0], false
	}
}

// undecided returns how many bytes at the end of b mean what the next ones
// decide: a carriage return, or the beginning of a character.
func undecided(b []byte) int {
	if bytes.HasSuffix(b, []byte("\r")) {
		return 1
	}
	for n := 1; n < utf8.UTFMax && n <= len(b); n++ {
		if last := b[len(b)-n:]; utf8.RuneStart(last[0]) {
			if utf8.FullRune(last) {
				return 0
			}
			return n
		}
	}
	return 0
}

// writeLines writes a container's content as a JSON array of lines.
func writeLines(w io.Writer, content io.Reader) error {
	before := []byte(`["`)
	lines, open := 0, false
	err := readLines(content, func(piece []byte, end bool) error {
		if !open {
			if _, err := w.Write(before); err != nil {
				return err
			}
			before = []byte(`,"`)
			open = true
			lines++
		}
		text, err := json.Marshal(string(piece))
		if err != nil {
			return fmt.Errorf("encode line: %w", err)
		}
		text = text[1:]
		if open = !end; open {
			text = text[:len(text)-1]
		}
		_, err = w.Write(text)
		return err
	})
	if err != nil {
		return err
	}
	if lines == 0 {
		_, err = io.WriteString(w, "[]")
	} else {
		_, err = io.WriteString(w, "]")
	}
	return err
}

// hashLines returns the hexadecimal SHA-256 over the lines of a container's
// content, without anything between them, and how many there are. The lines are taken as writeLines gives
// them, so bytes that are no UTF-8 count as the replacement character, and an
// agent can verify what it got.
func hashLines(content io.Reader) (hash string, lines int, err error) {
	sum := sha256.New()
	err = readLines(content, func(piece []byte, end bool) error {
		if end {
			lines++
		}
		if !utf8.Valid(piece) {
			piece = []byte(string([]rune(string(piece))))
		}
		_, err := sum.Write(piece)
		return err
	})
	if err != nil {
		return "", 0, err
	}
	return hex.EncodeToString(sum.Sum(nil)), lines, nil
}
