package artifact

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
)

const (
	endpoint = "03e31275-2277-d8e0-bb5f-480fac7ee4ef"
	guid     = "515cd0d1-ab35-60e4-827c-000000004e00"
	hash     = "2252cc3dee2623a44f5d1644338129b9"
)

// keeper is a store that keeps a content in memory.
type keeper struct{ content []byte }

func (k *keeper) store(r io.Reader) (*draft, error) {
	var err error
	k.content, err = io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	return &draft{}, nil
}

// contentOf reads an upload and returns it with its content.
func contentOf(body io.Reader) (*upload, []byte, error) {
	var k keeper
	u, err := read(body, k.store)
	if err != nil {
		return nil, nil, err
	}
	if u.draft != nil {
		return u, k.content, nil
	}
	return u, u.bytes, nil
}

func TestTarget(t *testing.T) {
	valid := func() *upload { return &upload{Filename: "event.json.gz", GUID: "{" + guid + "}", EventHash: hash} }
	for name, tc := range map[string]struct {
		change func(*upload)
		ok     bool
	}{
		"as agents send it":    {func(*upload) {}, true},
		"upper-case GUID":      {func(u *upload) { u.GUID = strings.ToUpper(u.GUID) }, true},
		"SHA-1":                {func(u *upload) { u.EventHash = strings.Repeat("aF", 20) }, true},
		"SHA-512":              {func(u *upload) { u.EventHash = strings.Repeat("0", 128) }, true},
		"file of one part":     {func(u *upload) { u.Chunk, u.Total = 1, 1 }, true},
		"last part":            {func(u *upload) { u.Chunk, u.Total = MaxParts, MaxParts }, true},
		"GUID without braces":  {func(u *upload) { u.GUID = guid }, false},
		"GUID half in braces":  {func(u *upload) { u.GUID = "{" + guid }, false},
		"GUID in two braces":   {func(u *upload) { u.GUID = "{{" + guid + "}}" }, false},
		"GUID leads out":       {func(u *upload) { u.GUID = "../{" + guid + "}" }, false},
		"no GUID":              {func(u *upload) { u.GUID = "" }, false},
		"short hash":           {func(u *upload) { u.EventHash = "abcd" }, false},
		"long hash":            {func(u *upload) { u.EventHash = strings.Repeat("0", 129) }, false},
		"hash leads out":       {func(u *upload) { u.EventHash = "../" + hash }, false},
		"file leads out":       {func(u *upload) { u.Filename = "../../up/escaped.txt" }, false},
		"file is the folder":   {func(u *upload) { u.Filename = "." }, false},
		"file is the parent":   {func(u *upload) { u.Filename = ".." }, false},
		"Windows path":         {func(u *upload) { u.Filename = `..\x` }, false},
		"no name":              {func(u *upload) { u.Filename = "" }, false},
		"question marks":       {func(u *upload) { u.Filename = "???" }, false},
		"NUL":                  {func(u *upload) { u.Filename = "a\x00b" }, false},
		"part 0":               {func(u *upload) { u.Total = 3 }, false},
		"part without a total": {func(u *upload) { u.Chunk = 1 }, false},
		"part beyond the last": {func(u *upload) { u.Chunk, u.Total = 4, 3 }, false},
		"negative part":        {func(u *upload) { u.Chunk, u.Total = -1, 3 }, false},
		"negative total":       {func(u *upload) { u.Chunk, u.Total = -2, -1 }, false},
		"too many parts":       {func(u *upload) { u.Chunk, u.Total = 1, MaxParts+1 }, false},
	} {
		t.Run(name, func(t *testing.T) {
			u := valid()
			tc.change(u)
			id, err := u.target(endpoint)
			if !tc.ok {
				if !fault.Is(err, fault.Invalid) {
					t.Errorf("%+v, %v", id, err)
				}
				return
			}
			if want := strings.Trim(u.GUID, "{}"); err != nil || id.Object() != endpoint+"/"+want+"/"+u.EventHash+"/event.json.gz" {
				t.Errorf("%s, %v", id.Object(), err)
			}
		})
	}
}

func TestRead(t *testing.T) {
	large := bytes.Repeat([]byte("\x00\xffx"), 100_000)
	text := base64.StdEncoding.EncodeToString(large)
	for name, tc := range map[string]struct {
		body string
		want []byte
		err  error
	}{
		"small":              {`{"filename":"x","content":"AAEC/w=="}`, []byte{0, 1, 2, 255}, nil},
		"null":               {`{"filename":"x","content":null}`, nil, nil},
		"no content":         {`{"filename":"x"}`, nil, nil},
		"empty":              {`{"filename":"x","content":""}`, []byte{}, nil},
		"large":              {`{"filename":"x","content":"` + text + `"}`, large, nil},
		"large, name behind": {`{"content":"` + text + `","filename":"x"}`, large, nil},
		"large, escaped":     {`{"filename":"x","content":"` + strings.ReplaceAll(text, "/", `\/`) + `"}`, large, nil},
		"nothing":            {"", nil, ErrMalformed},
		"brace":              {"{", nil, ErrMalformed},
		"array":              {"[]", nil, ErrMalformed},
		"two documents":      {"{}{}", nil, ErrMalformed},
		"number":             {`{"content":5}`, nil, ErrMalformed},
		"no base64":          {`{"content":"???"}`, nil, ErrMalformed},
		"large, no base64":   {`{"content":"` + text + `?"}`, nil, ErrMalformed},
		"large, torn base64": {`{"content":"` + text + `AA"}`, nil, ErrMalformed},
		"large, not ended":   {`{"content":"` + text, nil, ErrMalformed},
		"large, twice":       {`{"content":"` + text + `","content":"` + text + `"}`, nil, ErrMalformed},
		"total is a string":  {`{"content":"","total":"1"}`, nil, ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			u, got, err := contentOf(iotest.HalfReader(strings.NewReader(tc.body)))
			if !errors.Is(err, tc.err) || !bytes.Equal(got, tc.want) {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			if err == nil && u.Filename != "x" {
				t.Errorf("filename %q", u.Filename)
			}
		})
	}
	t.Run("large elsewhere is not the content", func(t *testing.T) {
		u, got, err := contentOf(strings.NewReader(`{"filename":"x","more":{"content":"` + text + `"},"content":"AA=="}`))
		if err != nil || u.draft != nil || !bytes.Equal(got, []byte{0}) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	})
	t.Run("too much beside the content", func(t *testing.T) {
		if _, _, err := contentOf(strings.NewReader(`{"filename":"` + strings.Repeat("x", maxDocument) + `"}`)); !fault.Is(err, fault.TooLarge) {
			t.Error(err)
		}
	})
	t.Run("content too large", func(t *testing.T) {
		body := io.MultiReader(strings.NewReader(`{"content":"`), io.LimitReader(letters{}, MaxContent/3*4+8), strings.NewReader(`"}`))
		_, err := read(body, func(r io.Reader) (*draft, error) {
			_, err := io.Copy(io.Discard, r)
			return nil, err
		})
		if !fault.Is(err, fault.TooLarge) {
			t.Error(err)
		}
	})
	broken := errors.New("broken off")
	for name, head := range map[string]string{"in the document": `{"filename":"x`, "in the content": `{"content":"` + text} {
		t.Run("broken off "+name, func(t *testing.T) {
			if _, _, err := contentOf(io.MultiReader(strings.NewReader(head), iotest.ErrReader(broken))); !errors.Is(err, broken) {
				t.Error(err)
			}
		})
	}
	t.Run("store fails", func(t *testing.T) {
		_, err := read(strings.NewReader(`{"content":"`+text+`"}`), func(io.Reader) (*draft, error) { return nil, ErrStore })
		if !errors.Is(err, ErrStore) {
			t.Error(err)
		}
	})
}

// letters is valid base64 without end.
type letters struct{}

func (letters) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'A'
	}
	return len(p), nil
}

// FuzzRead holds the reader against package json.
func FuzzRead(f *testing.F) {
	for _, s := range []string{
		"", "{", "{}", "null", `{"filename":"x","guid":"{y}","event-hash":"z","content":"AAEC/w==","chunk":1,"total":2}`,
		`{"CONTENT":"AA==","content":null}`, `{"CONTENT":"#A==","content":null}`, `{"content":"\u0041\u0041=="}`, `{"content":[1,2]}`, `{"content":"A\nA=="}`, `{"x":{"content":"AA"}}`,
		`{"content":"` + strings.Repeat("QUJD", keepContent/4+10) + `"}`, `{"content":"` + strings.Repeat("QUJD", keepContent/4+10) + `=","total":3}`,
	} {
		f.Add([]byte(s), 0)
		f.Add([]byte(s), keepContent)
	}
	f.Fuzz(func(t *testing.T, body []byte, pad int) {
		// Blanks within base64 make a small content a large one.
		if at := bytes.Index(body, []byte(`"content":"`)); at >= 0 && pad > 0 && pad < 4*keepContent {
			at += len(`"content":"`)
			body = bytes.Join([][]byte{body[:at], bytes.Repeat([]byte(`AAAA`), pad/4), body[at:]}, nil)
		}
		if len(body) > maxDocument/2 {
			t.Skip("larger than what may stand in memory")
		}
		u, content, err := contentOf(bytes.NewReader(body))
		var want struct {
			Filename  string `json:"filename"`
			GUID      string `json:"guid"`
			EventHash string `json:"event-hash"`
			Content   []byte `json:"content"`
			Chunk     int    `json:"chunk"`
			Total     int    `json:"total"`
		}
		wantErr := json.Unmarshal(body, &want)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("error %v", err)
			}
			// Package json passes over a content that stands elsewhere or is
			// replaced by a later one.
			if wantErr == nil && want.Content != nil && bytes.Count(bytes.ToLower(body), []byte("content")) < 2 {
				t.Fatalf("refused: %v", err)
			}
			return
		}
		if wantErr != nil {
			// Of several contents the last alone is looked at.
			if corrupt := base64.CorruptInputError(0); errors.As(wantErr, &corrupt) && bytes.Count(bytes.ToLower(body), []byte("content")) > 1 {
				return
			}
			t.Fatalf("accepted, but: %v", wantErr)
		}
		if u.Filename != want.Filename || u.GUID != want.GUID || u.EventHash != want.EventHash || u.Chunk != want.Chunk || u.Total != want.Total ||
			!bytes.Equal(content, want.Content) {
			t.Fatalf("%+v with %q, want %+v", u, content, want)
		}
		if id, err := u.target(endpoint); err == nil && strings.Count(id.Object(), "/") != 3 {
			t.Fatalf("object %q", id.Object())
		}
	})
}
