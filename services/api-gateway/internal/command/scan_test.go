package command

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

const testKeep = 8

// hoist runs a hoister over a document and returns what is left with what was
// taken out, which stands in it as @0, @1 and so on.
func hoist(doc string, grow func(int) error) (left string, taken []string, err error) {
	h := &hoister{
		r: bufio.NewReaderSize(iotest.OneByteReader(strings.NewReader(doc)), 16), keep: testKeep,
		wanted: func(member string) bool { return member == "data" },
		take: func(_ string, raw io.Reader) (string, error) {
			b, err := io.ReadAll(raw)
			taken = append(taken, string(b))
			return "@" + strconv.Itoa(len(taken)-1), err
		},
		grow: grow,
	}
	b, err := h.run()
	return string(b), taken, err
}

func plenty(int) error { return nil }

func TestHoister(t *testing.T) {
	for _, tc := range []struct{ name, doc, left string }{
		{"empty", ``, ``},
		{"short", `{"data":"12345678"}`, `{"data":"12345678"}`},
		{"long", `{"data":"123456789"}`, `{"data":"@0"}`},
		{"long, spaces", `{ "data" : "123456789" , "x" : 1 }`, `{ "data" : "@0" , "x" : 1 }`},
		{"twice", `{"data":"123456789","data":"987654321"}`, `{"data":"@0","data":"@1"}`},
		{"other member", `{"name":"123456789"}`, `{"name":"123456789"}`},
		{"long member name", `{"123456789":"data"}`, `{"123456789":"data"}`},
		{"behind a member named data", `{"data":1,"x":"123456789"}`, `{"data":1,"x":"123456789"}`},
		{"in an array", `{"data":["123456789"]}`, `{"data":["123456789"]}`},
		{"nested", `[{"a":{"data":"123456789"}}]`, `[{"a":{"data":"@0"}}]`},
		{"escapes", `{"data":"\"\\\/\b\u00e9\"}"}`, `{"data":"@0"}`},
		{"braces in strings", `{"x":"{\"data\":","data":"a}"}`, `{"x":"{\"data\":","data":"a}"}`},
		{"no JSON", `{nope`, `{nope`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			left, _, err := hoist(tc.doc, plenty)
			if err != nil || left != tc.left {
				t.Fatalf("left is %s, %v; want %s", left, err, tc.left)
			}
		})
	}
	for _, doc := range []string{
		`{"data":"`, `{"data":"123456789`, `{"data":"\`, `{"data":"\u00`, `"\x"`, `"\u12g4"`, "\"a\nb\"",
		`{"name":"123456789123456789`, "{\"name\":\"123456789\x01\"}", `{"data":"123456789\q"}`,
	} {
		if left, _, err := hoist(doc, plenty); err == nil {
			t.Errorf("%q passed as %q", doc, left)
		}
	}
}

// TestHoisterLosesNothing puts random documents together again.
func TestHoisterLosesNothing(t *testing.T) {
	member := rapid.SampledFrom([]string{"data", "name", "da\"ta", "stdout", ""})
	var value func(depth int) *rapid.Generator[any]
	value = func(depth int) *rapid.Generator[any] {
		leaf := rapid.OneOf(
			rapid.Just[any](nil), rapid.Just[any](true), rapid.Just[any](json.Number("-1.5e3")),
			rapid.Custom(func(t *rapid.T) any { return rapid.StringN(0, 30, -1).Draw(t, "string") }))
		if depth == 0 {
			return leaf
		}
		return rapid.OneOf(leaf,
			rapid.Custom(func(t *rapid.T) any { return rapid.MapOfN(member, value(depth-1), 0, 4).Draw(t, "object") }),
			rapid.Custom(func(t *rapid.T) any { return rapid.SliceOfN(value(depth-1), 0, 4).Draw(t, "array") }))
	}
	rapid.Check(t, func(t *rapid.T) {
		v := value(4).Draw(t, "value")
		doc, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		left, taken, err := hoist(string(doc), plenty)
		if err != nil {
			t.Fatal(err)
		}
		var want, got any
		if err := json.Unmarshal(doc, &want); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(left), &got); err != nil {
			t.Fatalf("left is %s: %v", left, err)
		}
		if back := restore(got, taken, false); !reflect.DeepEqual(back, want) {
			t.Fatalf("put together again it is %v, want %v", back, want)
		}
	})
}

// restore puts what was taken back. Only values of members named data can
// have been.
func restore(v any, taken []string, data bool) any {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			v[k] = restore(x, taken, k == "data")
		}
	case []any:
		for i, x := range v {
			v[i] = restore(x, taken, false)
		}
	case string:
		if i, err := strconv.Atoi(strings.TrimPrefix(v, "@")); data && err == nil && strings.HasPrefix(v, "@") && i < len(taken) {
			var s string
			if err := json.Unmarshal([]byte(`"`+taken[i]+`"`), &s); err != nil {
				return err
			}
			return s
		}
	}
	return v
}

func TestHoisterAsksForMemory(t *testing.T) {
	full := errors.New("full")
	var granted int
	grow := func(n int) error {
		if granted+n > 1<<20 {
			return full
		}
		granted += n
		return nil
	}
	// What is taken out costs nothing.
	if _, taken, err := hoist(`{"data":"`+strings.Repeat("x", 2<<20)+`"}`, grow); err != nil || len(taken) != 1 {
		t.Fatalf("%d taken, %v", len(taken), err)
	}
	for name, doc := range map[string]string{
		"a long string":      `{"name":"` + strings.Repeat("x", 2<<20) + `"}`,
		"many short strings": `[` + strings.Repeat(`"abc",`, 1<<19) + `1]`,
		"no strings":         strings.Repeat("[", 2<<20),
	} {
		granted = 0
		if _, _, err := hoist(doc, grow); !errors.Is(err, full) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPlainText(t *testing.T) {
	for _, tc := range []struct{ in, out string }{
		{`abc`, `abc`}, {`a\/b\u002Bc\u003d`, `a/b+c=`}, {`\n\r\t`, "\n\r\t"}, {`\"\\`, `"\`},
	} {
		got, err := io.ReadAll(iotest.OneByteReader(&plainText{r: bufio.NewReader(strings.NewReader(tc.in))}))
		if err != nil || string(got) != tc.out {
			t.Errorf("%s is %q, %v; want %q", tc.in, got, err, tc.out)
		}
	}
	if got, err := io.ReadAll(&plainText{r: bufio.NewReader(strings.NewReader(`abc\u00e9`))}); err == nil {
		t.Errorf("what is not ASCII passed as %q", got)
	}
	if err := iotest.TestReader(&plainText{r: bufio.NewReader(strings.NewReader(`a\/b`))}, []byte("a/b")); err != nil {
		t.Error(err)
	}
	raw := &rawString{r: bufio.NewReader(bytes.NewReader([]byte(`a\u0041b" rest`)))}
	if err := iotest.TestReader(raw, []byte(`a\u0041b`)); err != nil {
		t.Error(err)
	}
}
