package detect

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/0xrawsec/gene/v2/engine"
)

// geneText is the value that gene sees for a JSON value.
func geneText(tok []byte) (string, bool) {
	var event engine.GenericEvent
	doc := append(append([]byte(`{"v":`), tok...), '}')
	if err := json.Unmarshal(doc, &event); err != nil && !isTypeError(err) {
		return "", false
	}
	return engine.EventGetString(event, engine.Path("v"))
}

var textTokens = []string{
	`""`, `"plain"`, `"C:\\Windows\\System32"`, `"a\"b"`, `"\/\b\f\n\r\t"`, `"\u0041\u00e9\u212a"`,
	`"\ud83d\ude00"`, `"\ud83d"`, `"\ude00x"`, `"\ud83d\u0041"`, `"\ud83dx"`, `"é😀"`, "\"\xff\xfe\"", "\"a\\\\\xc3\"",
	"\"\\ud83d\xff\"", `"\\u0041"`, `"\\\\"`,
	`true`, `false`, `null`, `0`, `-0`, `7`, `-12`, `123456789012345`, `999999`, `1000000`, `1234567`, `-1234567`, `1e-999`, `12E2`, `1234567890123456789`, `9223372036854775808`,
	`1.5`, `1e3`, `1E-7`, `1e21`, `1e20`, `-1e999`, `1e999`, `0.1`, `100000000000000000000000`,
	`{}`, `[]`, `{"b":1,"a":[true,null,"x\\y"]}`, `[1.0,2e400]`, `{"a":1,"a":2}`, `[ "x" , {"k":{}} ]`,
}

func TestTextIsWhatGeneSees(t *testing.T) {
	for _, tok := range textTokens {
		t.Run(tok, func(t *testing.T) { checkText(t, []byte(tok)) })
	}
}

func checkText(t *testing.T, tok []byte) {
	want, ok := geneText(tok)
	if !ok {
		t.Fatalf("%s is not JSON", tok)
	}
	buf := []byte("kept")
	val, buf := text(tok, buf)
	if string(val) != want {
		t.Errorf("%s: got %q, want %q", tok, val, want)
	}
	if !strings.HasPrefix(string(buf), "kept") {
		t.Errorf("%s: buffer is %q", tok, buf)
	}
	if !utf8.Valid(val) {
		t.Errorf("%s: invalid UTF-8 %q", tok, val)
	}
}

func FuzzText(f *testing.F) {
	for _, tok := range textTokens {
		f.Add([]byte(tok))
	}
	f.Fuzz(func(t *testing.T, tok []byte) {
		if !json.Valid(tok) || len(tok) == 0 || strings.ContainsRune(" \t\r\n", rune(tok[0])) {
			return
		}
		s := scanner{b: tok}
		got, ok := s.value()
		if !ok {
			t.Fatalf("%q cannot be scanned", tok)
		}
		if rest := strings.Trim(string(tok[len(got):]), " \t\r\n"); rest != "" {
			t.Fatalf("%q leaves %q", tok, rest)
		}
		if _, ok := geneText(got); ok {
			checkText(t, got)
		}
	})
}

func TestFold(t *testing.T) {
	for in, want := range map[string]string{
		"":                           "",
		"ABC xyz 123":                "abc xyz 123",
		"\u212aEY \u017fTOP":         "key stop",
		"É\u212a😀":                   "Ék😀",
		"\xc5\xbe\u017f\u017e":       "\xc5\xbes\u017e",
		"\u212a, then ASCII alone":   "k, then ascii alone",
		strings.Repeat("Z\u212a", 9): strings.Repeat("zk", 9),
	} {
		got, buf := fold([]byte(in), []byte("x"))
		if string(got) != want || string(buf) != "x"+want {
			t.Errorf("%q: got %q in %q, want %q", in, got, buf, want)
		}
	}
}

func TestEveryByteIsFoldedAtEveryPlace(t *testing.T) {
	for c := range 256 {
		for place := range 17 {
			in := bytes.Repeat([]byte("q"), 17)
			in[place] = byte(c)
			want := bytes.Clone(in)
			if c >= 'A' && c <= 'Z' {
				want[place] += 'a' - 'A'
			}
			if got, _ := fold(in, nil); !bytes.Equal(got, want) {
				t.Fatalf("%q: got %q, want %q", in, got, want)
			}
			if got := isASCII(in); got != (c < 0x80) {
				t.Fatalf("%q: ASCII %t", in, got)
			}
		}
	}
}
