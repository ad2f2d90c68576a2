package command

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
)

// ErrDocument means that a document has too much beside the strings that are
// taken out of it.
var ErrDocument = errors.New("document is too large")

// HoistBytes reads a JSON document and returns it without those base64 strings
// of a member that are longer than keep bytes. take is given the bytes that
// such a string stands for, reads them to the end, and returns the text to
// stand in its place, which must need no escapes. The member is found at any
// depth, whatever the case of its name. What is left is at most max bytes, or
// the error is ErrDocument; it is to be checked by package json.
func HoistBytes(r io.Reader, member string, keep, max int, take func(value io.Reader) (string, error)) ([]byte, error) {
	size := 0
	h := &hoister{
		r:      bufio.NewReaderSize(r, 64<<10),
		keep:   keep,
		wanted: func(m string) bool { return strings.EqualFold(m, member) },
		take: func(_ string, raw io.Reader) (string, error) {
			return take(base64.NewDecoder(base64.StdEncoding, &plainText{r: bufio.NewReaderSize(raw, 32<<10)}))
		},
		grow: func(n int) error {
			if size += n; size > max {
				return fmt.Errorf("%w: more than %d bytes", ErrDocument, max)
			}
			return nil
		},
	}
	return h.run()
}
