package gateway

import (
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
)

// FuzzContainerLines compares what agents get with what the rule-engine reads
// from the same content.
func FuzzContainerLines(f *testing.F) {
	piece := strings.Repeat("x", maxLinePiece-2)
	for _, s := range []string{
		"", "\n", "\r\n", "\r", "a", "a\n", "a\r\nb\r", "a\n\nb\n", "\xff\xfe\n", "a\r\r\nb", "\"\\<&>\u2028\n",
		piece + "xx", piece + "x\n", piece + "xx\n", piece + "x\r\n", piece + "xx\r\n", piece + "\r\r\n", piece + "x\r", piece + "x\ry\n",
		piece + "€\n", piece + "x€\n", piece + "x𝄞", piece + "x\xf0\x9d\n", piece + "x\xf0\x9dy", piece + "\x80\x80\x80\x80\x80", piece + piece + piece,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, content string) {
		want := message.DecodeContainer([]byte(content))
		text, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &want); err != nil { // what is no UTF-8 is replaced
			t.Fatal(err)
		}
		for name, r := range map[string]io.Reader{
			"whole": strings.NewReader(content), "halves": iotest.HalfReader(strings.NewReader(content)), "end with data": iotest.DataErrReader(strings.NewReader(content)),
		} {
			var b strings.Builder
			if err := writeLines(&b, r); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if b.String() != string(text) {
				t.Errorf("%s: %.200q, want %.200q", name, b.String(), text)
			}
		}
		sum, lines, err := hashLines(strings.NewReader(content))
		if err != nil || lines != len(want) || sum != hexSum(strings.Join(want, "")) {
			t.Errorf("SHA-256 %s, %v", sum, err)
		}
	})
}

func TestContainerLinesFail(t *testing.T) {
	broken := errors.New("broken")
	content := func() io.Reader { return io.MultiReader(strings.NewReader("a\nb"), iotest.ErrReader(broken)) }
	if err := writeLines(io.Discard, content()); !errors.Is(err, broken) {
		t.Errorf("reading: %v", err)
	}
	if _, _, err := hashLines(content()); !errors.Is(err, broken) {
		t.Errorf("hashing: %v", err)
	}
	closed, w := io.Pipe()
	_ = closed.CloseWithError(broken)
	for _, s := range []string{"", "a", strings.Repeat("x", 3*maxLinePiece)} {
		if err := writeLines(w, strings.NewReader(s)); !errors.Is(err, broken) {
			t.Errorf("writing %d bytes: %v", len(s), err)
		}
	}
}
