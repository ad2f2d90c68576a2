package lines

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

// got is one result of Next in a form that can be compared.
type got struct {
	line string
	long bool
	size int64
	sum  [sha256.Size]byte
}

func readAll(src io.Reader, buffer int, l Limits) ([]got, error) {
	r := NewReader(bufio.NewReaderSize(src, buffer), l)
	var out []got
	for {
		line, long, err := r.Next()
		switch {
		case errors.Is(err, io.EOF):
			return out, nil
		case err != nil:
			return out, err
		case long != nil:
			out = append(out, got{string(long.Head), true, long.Size, long.SHA256})
		default:
			out = append(out, got{line: string(line)})
		}
	}
}

// reference splits text that is wholly in memory.
func reference(text []byte, l Limits) []got {
	var out []got
	for len(text) > 0 {
		line, rest, _ := bytes.Cut(text, []byte{'\n'})
		text = rest
		line = bytes.TrimSuffix(line, []byte{'\r'})
		switch {
		case len(line) > l.Line:
			out = append(out, got{string(line[:min(l.Head, len(line))]), true, int64(len(line)), sha256.Sum256(line)})
		case len(bytes.Trim(line, " \t\r")) > 0:
			out = append(out, got{line: string(line)})
		}
	}
	return out
}

func TestNext(t *testing.T) {
	limits := Limits{Line: 40, Head: 8}
	fits, over := strings.Repeat("a", 40), strings.Repeat("b", 41)
	for name, text := range map[string]string{
		"empty":                  "",
		"one":                    "{}\n",
		"no ending":              "{}\n{\"a\":1}",
		"crlf":                   "{}\r\n{}\r\n",
		"crlf at the end":        "{}\r",
		"inner cr":               "{\r}\n",
		"blank":                  "\n\r\n  \t\n{}\n\n",
		"longest":                fits + "\n" + fits + "\r\n" + fits,
		"too long":               over + "\n{}\n" + over + "\r\n{}\n" + over,
		"much too long":          strings.Repeat("x", 500) + "\n{}",
		"much too long with cr":  strings.Repeat("x", 499) + "\r\r\n{}",
		"too long of whitespace": strings.Repeat(" ", 41) + "\n{}",
	} {
		t.Run(name, func(t *testing.T) {
			want := reference([]byte(text), limits)
			for _, buffer := range []int{16, 17, 64, 4096} {
				for kind, src := range map[string]io.Reader{
					"whole":    strings.NewReader(text),
					"by bytes": iotest.OneByteReader(strings.NewReader(text)),
					"with err": iotest.DataErrReader(strings.NewReader(text)),
				} {
					have, err := readAll(src, buffer, limits)
					if err != nil || !slices.Equal(have, want) {
						t.Errorf("buffer %d, %s: got %+v, %v, want %+v", buffer, kind, have, err, want)
					}
				}
			}
		})
	}
}

func TestNextErrors(t *testing.T) {
	broken := errors.New("broken")
	for name, text := range map[string]string{
		"in a short line":   "{}\n{\"a\":",
		"in a spilled line": "{}\n" + strings.Repeat("a", 30),
		"in a long line":    "{}\n" + strings.Repeat("a", 300),
	} {
		t.Run(name, func(t *testing.T) {
			have, err := readAll(io.MultiReader(strings.NewReader(text), iotest.ErrReader(broken)), 16, Limits{Line: 40, Head: 8})
			if !errors.Is(err, broken) {
				t.Errorf("error %v, want %v", err, broken)
			}
			if want := []got{{line: "{}"}}; !slices.Equal(have, want) {
				t.Errorf("got %+v, want %+v", have, want)
			}
		})
	}
}

func TestGrowIsAsked(t *testing.T) {
	used := 0
	limits := Limits{Line: 1000, Head: 8, Grow: func(n int) error { used += n; return nil }}
	text := strings.Repeat(strings.Repeat("a", 900)+"\n", 5)
	if _, err := readAll(strings.NewReader(text), 16, limits); err != nil {
		t.Fatal(err)
	}
	if used < 900 || used > limits.Line+2 {
		t.Errorf("%d bytes were asked for, want one line's worth", used)
	}
	full := errors.New("no memory")
	limits.Grow = func(int) error { return full }
	if _, err := readAll(strings.NewReader(text), 16, limits); !errors.Is(err, full) {
		t.Errorf("error %v, want %v", err, full)
	}
}

func FuzzNext(f *testing.F) {
	f.Add([]byte("{}\n\r\n{\"a\":1}\r\nxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"), uint8(3), uint8(20))
	f.Add([]byte("\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\n"), uint8(0), uint8(4))
	f.Fuzz(func(t *testing.T, text []byte, buffer, limit uint8) {
		limits := Limits{Line: int(limit), Head: int(limit) / 2}
		want := reference(text, limits)
		have, err := readAll(bytes.NewReader(text), 16+int(buffer), limits)
		if err != nil || !slices.Equal(have, want) {
			t.Fatalf("got %+v, %v, want %+v", have, err, want)
		}
	})
}
