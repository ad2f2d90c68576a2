package message_test

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
)

func TestIsContainerName(t *testing.T) {
	for name, want := range map[string]bool{
		"blacklist": true, "edr_iocs": true, "a.b-c": true, "sha256": true, "..a": true, strings.Repeat("x", 128): true,
		"": false, ".": false, "..": false, "a b": false, "a/b": false, "ä": false, "a\n": false, "a*": false, strings.Repeat("x", 129): false,
	} {
		if got := message.IsContainerName(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}

// FuzzContainerText compares the normal form with what is decoded and encoded.
func FuzzContainerText(f *testing.F) {
	for _, s := range []string{"", "\n", "\r\n", "\r", "a", "a\n", "a\r\nb\r", "a\n\nb\n", "\xff\xfe\n", "a\r\r\nb"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, content string) {
		lines := message.DecodeContainer([]byte(content))
		for name, r := range map[string]io.Reader{"whole": strings.NewReader(content), "halves": iotest.HalfReader(strings.NewReader(content))} {
			text := message.NewContainerText(r, false)
			got, err := io.ReadAll(text)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != string(message.EncodeContainer(lines)) || text.Lines() != len(lines) || text.Size() != uint64(len(got)) {
				t.Errorf("%s: %d lines, %d bytes, %q", name, text.Lines(), text.Size(), got)
			}
		}
	})
}

// What goes beyond a bound is refused, what just meets it is not.
func TestContainerTextBounds(t *testing.T) {
	long := strings.Repeat("x", message.MaxContainerLine)
	broken := errors.New("broken")
	for name, tc := range map[string]struct {
		text   io.Reader
		kind   fault.Kind
		holds  string
		strict bool
	}{
		"longest line":            {text: strings.NewReader("a\n" + long + "\r\nb")},
		"longest line, not ended": {text: strings.NewReader(long)},
		"long line":               {text: strings.NewReader("a\n" + long + "x\nb"), kind: fault.TooLarge, holds: "line 2 is longer than 65536 bytes"},
		"very long line":          {text: strings.NewReader(long + long + long), kind: fault.TooLarge, holds: "line 1 is longer"},
		"most lines":              {text: strings.NewReader(strings.Repeat("\n", message.MaxContainerLines))},
		"many lines":              {text: strings.NewReader(strings.Repeat("\n", message.MaxContainerLines) + "x"), kind: fault.TooLarge, holds: "more than 1000000 lines"},
		"much text":               {text: endless(long + "\n"), kind: fault.TooLarge, holds: "beyond 268435456 bytes of text"},
		"UTF-8":                   {text: strings.NewReader("ä\n€\n"), strict: true},
		"no UTF-8":                {text: strings.NewReader("a\nb\n\xff\xfea\x00\n"), strict: true, kind: fault.Invalid, holds: "line 3 is not UTF-8"},
		"no UTF-8, allowed":       {text: strings.NewReader("\xff\n")},
		"error":                   {text: io.MultiReader(strings.NewReader("a\nb"), iotest.ErrReader(broken)), holds: "broken"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := io.Copy(io.Discard, message.NewContainerText(tc.text, tc.strict))
			switch {
			case tc.holds == "" && err != nil, tc.holds != "" && (err == nil || !strings.Contains(err.Error(), tc.holds)), tc.kind != "" && !fault.Is(err, tc.kind):
				t.Errorf("got %v, want %s %q", err, tc.kind, tc.holds)
			}
		})
	}
}

// endless repeats a text.
func endless(s string) io.Reader { return &repeat{s: s} }

type repeat struct {
	s string
	n int
}

func (r *repeat) Read(p []byte) (int, error) {
	n := copy(p, r.s[r.n:])
	r.n = (r.n + n) % len(r.s)
	return n, nil
}
