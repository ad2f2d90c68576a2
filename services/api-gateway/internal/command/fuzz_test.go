package command

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// A result that is accepted says what encoding/json reads in it.
func FuzzReadResult(f *testing.F) {
	for _, s := range []string{
		`{"uuid":"u","name":"n","args":["a",""],"stdout":"aGk=","stderr":null,"error":"e","fetch":{"/x":{"uuid":"f","name":"x","data":"aGk=","error":""}}}`,
		`{"uuid":"u","expect-json":true,"stdout":{"a":[1,2.50]},"json":[]}`,
		`{"uuid":"a","uuid":"b","Stdout":"x","drop":[{"data":"!"}]}`,
		`{"stdout":"\u0061"}`, `[]`, `null`, ``, `{"uuid":1}`, `{} {}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		if !utf8.Valid(doc) || len(doc) > keepString {
			return // is repaired, or goes to the object store
		}
		grown := 0
		got, err := ReadResult(t.Context(), bytes.NewReader(doc), NewUploads(nil, "endpoint"), func(n int) error { grown += n; return nil })
		var want agentResult
		wantErr := json.Unmarshal(doc, &want)
		if err != nil {
			if got != nil {
				t.Fatalf("%+v beside the error %v", got, err)
			}
			return
		}
		if wantErr != nil {
			t.Fatalf("accepted, but encoding/json: %v", wantErr)
		}
		if got.UUID != want.UUID || got.Name != want.Name || got.Error != want.Error || !slices.Equal(got.Args, want.Args) ||
			len(got.Drop) != len(want.Drop) || len(got.Fetch) != len(want.Fetch) {
			t.Fatalf("got %+v of %+v", got, want)
		}
	})
}

// The words of a command line that is accepted stand for themselves when they
// are quoted.
func FuzzParse(f *testing.F) {
	for _, s := range []string{`cmd.exe /c "dir C:\\"`, `a 'b c' # d`, `"`, `a\ b ""`, "a\nb", ``, `é "ü'"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		parse := func(line string) (name string, args []string, err error) {
			body, err := json.Marshal(map[string]any{"command-line": line, "timeout": 10})
			if err != nil {
				t.Fatal(err)
			}
			_, q, err := Parse(body)
			if err != nil {
				return "", nil, err
			}
			return q.Name, q.Args, nil
		}
		name, args, err := parse(line)
		if err != nil || name == "" && len(args) == 0 {
			return
		}
		var quoted []string
		for _, word := range append([]string{name}, args...) {
			quoted = append(quoted, `"`+strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(word)+`"`)
		}
		again, argsAgain, err := parse(strings.Join(quoted, " "))
		if err != nil || again != name || !slices.Equal(argsAgain, args) {
			t.Fatalf("%q is %q %q, and quoted %q %q, %v", line, name, args, again, argsAgain, err)
		}
	})
}
