package e2e

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

const (
	processGUID = "515cd0d1-ab35-60e4-827c-000000004e00"
	eventHash   = "2252cc3dee2623a44f5d1644338129b9"
)

// artifact is an upload as an agent sends it.
type artifact struct {
	Filename  string `json:"filename"`
	GUID      string `json:"guid"`
	EventHash string `json:"event-hash"`
	Content   []byte `json:"content"`
	Chunk     int    `json:"chunk,omitempty"`
	Total     int    `json:"total,omitempty"`
}

// upload sends a body and returns the answer.
func (p *proc) upload(e endpoint, body io.Reader, gzipped bool) (int, string) {
	p.t.Helper()
	resp, err := p.client.Do(p.request(e, http.MethodPost, "/upload/dumps", body, gzipped))
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// send uploads a file, of which the names that are not given are valid.
func (p *proc) send(e endpoint, a artifact) int {
	p.t.Helper()
	if a.GUID == "" {
		a.GUID = "{" + processGUID + "}"
	}
	if a.EventHash == "" {
		a.EventHash = eventHash
	}
	body, err := json.Marshal(a)
	if err != nil {
		p.t.Fatal(err)
	}
	code, text := p.upload(e, bytes.NewReader(body), false)
	if code == http.StatusOK && text != "" {
		p.t.Fatalf("upload answers %q", text)
	}
	return code
}

func (p *proc) mustSend(e endpoint, a artifact) {
	p.t.Helper()
	if code := p.send(e, a); code != http.StatusOK {
		p.t.Fatalf("upload of %s answers %d", a.Filename, code)
	}
}

type folder struct {
	Update  time.Time `json:"update"`
	Process string    `json:"process-guid"`
	Event   string    `json:"event-hash"`
	BaseURL string    `json:"base-url"`
	Files   []string  `json:"files"`
}

func (p *proc) artifacts(e endpoint, query string) []folder {
	p.t.Helper()
	var list []folder
	if err := json.Unmarshal(p.data(http.MethodGet, "/endpoints/"+e.UUID+"/artifacts"+query, ""), &list); err != nil {
		p.t.Fatal(err)
	}
	return list
}

// raw makes an admin request and returns the answer as it is.
func (p *proc) raw(path string) (*http.Response, []byte) {
	p.t.Helper()
	req, err := http.NewRequest(http.MethodGet, p.admin+path, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set("Api-Key", adminKey)
	resp, err := p.client.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp, body
}

func zip(content []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write(content)
	_ = w.Close()
	return b.Bytes()
}

// TestArtifacts takes files from an endpoint to the operator, across crashes
// of the manager.
func TestArtifacts(t *testing.T) {
	p := start(t, t.TempDir())
	e := p.enrol()
	if a, err := p.ask(http.MethodGet, "/endpoints/"+e.UUID+"/artifacts", ""); err != nil || string(a.Data) != "[]" || a.Message != "OK" {
		t.Fatalf("nothing uploaded: %s %+v, %v", a.Data, a, err)
	}
	began := time.Now().Add(-time.Second)
	event := []byte(`{"hello":"artifact"}`)
	zipped := zip(event)
	large := make([]byte, 9_000_001)
	_, _ = io.ReadFull(pattern{}, large)
	p.mustSend(e, artifact{Filename: "plain.txt", Content: []byte("plain text")})
	p.mustSend(e, artifact{Filename: "event.json.gz", Content: zipped})
	p.mustSend(e, artifact{Filename: "event.json.gz", Content: zipped})
	if code := p.send(e, artifact{Filename: "event.json.gz", Content: []byte("other")}); code != http.StatusConflict {
		t.Errorf("other content under the name: %d", code)
	}
	if code, text := p.upload(e, bytes.NewReader(zip([]byte(`{"filename":"gz.bin","guid":"{`+processGUID+`}","event-hash":"`+eventHash+`","content":"AAEC/w=="}`))), true); code != http.StatusOK {
		t.Errorf("gzip body: %d %s", code, text)
	}
	p.mustSend(e, artifact{Filename: "large.dmp", Content: large})

	// In parts, with crashes between them, the first and the last twice.
	const part = 3 << 20
	cut := func(n int) artifact {
		return artifact{Filename: "parts.dmp", EventHash: strings.Repeat("ab", 20), Content: large[(n-1)*part : min(n*part, len(large))], Chunk: n, Total: 3}
	}
	p.mustSend(e, cut(1))
	p.mustSend(e, cut(1))
	p.kill()
	p.run()
	p.mustSend(e, cut(2))
	if list := p.artifacts(e, ""); len(list) != 1 {
		t.Errorf("a file is listed before it is complete: %+v", list)
	}
	p.mustSend(e, cut(3))
	p.mustSend(e, cut(3))

	base := "/endpoints/" + e.UUID + "/artifacts/" + processGUID + "/"
	folders := func() {
		t.Helper()
		list := p.artifacts(e, "?since="+url.QueryEscape(began.Format(time.RFC3339Nano)))
		if len(list) != 2 {
			t.Fatalf("listed are %+v", list)
		}
		for i, want := range []string{
			fmt.Sprint(processGUID, eventHash, base+eventHash+"/", []string{"event.json.gz", "gz.bin", "large.dmp", "plain.txt"}),
			fmt.Sprint(processGUID, strings.Repeat("ab", 20), base+strings.Repeat("ab", 20)+"/", []string{"parts.dmp"}),
		} {
			f := list[i]
			if got := fmt.Sprint(f.Process, f.Event, f.BaseURL, f.Files); got != want {
				t.Errorf("listed is %s, want %s", got, want)
			}
			if f.Update.Before(began) || f.Update.After(time.Now().Add(time.Second)) || f.Update.Location() != time.UTC {
				t.Errorf("update is %s", f.Update)
			}
		}
	}
	files := func() {
		t.Helper()
		for path, want := range map[string][]byte{
			eventHash + "/plain.txt": []byte("plain text"), eventHash + "/event.json.gz": zipped, eventHash + "/gz.bin": {0, 1, 2, 255},
			eventHash + "/large.dmp": large, strings.Repeat("ab", 20) + "/parts.dmp": large, eventHash + "/event.json.gz?gunzip=true": event,
		} {
			var got []byte
			if err := json.Unmarshal(p.data(http.MethodGet, base+path, ""), &got); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes, want %d, %v", path, len(got), len(want), err)
			}
			sep := "?"
			if strings.Contains(path, "?") {
				sep = "&"
			}
			resp, raw := p.raw(base + path + sep + "raw=1")
			if !bytes.Equal(raw, want) || resp.Header.Get("Content-Type") != http.DetectContentType(want) || !strings.HasPrefix(resp.Header.Get("Content-Disposition"), "attachment") {
				t.Errorf("%s raw: %d bytes of %s, want %d", path, len(raw), resp.Header.Get("Content-Type"), len(want))
			}
		}
	}
	folders()
	files()
	if list := p.artifacts(e, "?since="+url.QueryEscape(time.Now().Add(time.Hour).Format(time.RFC3339))); len(list) != 0 {
		t.Errorf("since an hour from now there are %+v", list)
	}
	if list := p.artifacts(p.enrol(), ""); len(list) != 0 {
		t.Errorf("another endpoint has %+v", list)
	}
	p.terminate()
	p.run()
	folders()
	files()

	unknown := "00000000-1111-2222-3333-444444444444"
	for path, want := range map[string]string{
		base + eventHash + "/plain.txt?gunzip=true":                                                "Failed to gunzip file: gzip: invalid header",
		base + eventHash + "/plain.txt?raw=true&gunzip=true":                                       "Failed to gunzip file: gzip: invalid header",
		base + eventHash + "/plain.txt?raw=yes":                                                    "raw",
		base + eventHash + "/plain.txt?gunzip=2":                                                   "gunzip",
		base + eventHash + "/nope.gz":                                                              "File not found",
		base + strings.Repeat("ab", 20) + "/plain.txt":                                             "File not found",
		base + eventHash + "/plain.txt%00":                                                         "File not found",
		strings.Replace(base, "4e00", "4e01", 1) + eventHash + "/plain.txt":                        "File not found",
		"/endpoints/" + unknown + "/artifacts":                                                     "Unknown endpoint: " + unknown,
		"/endpoints/" + unknown + "/artifacts/" + processGUID + "/" + eventHash + "/plain.txt":     "Unknown endpoint: " + unknown,
		"/endpoints/" + e.UUID + "/artifacts?since=yesterday":                                      "Failed to parse since parameter: ",
		"/endpoints/" + p.enrol().UUID + "/artifacts/" + processGUID + "/" + eventHash + "/gz.bin": "File not found",
	} {
		if a, err := p.ask(http.MethodGet, path, ""); err != nil || a.Message != "NOK" || !strings.Contains(a.Error, want) {
			t.Errorf("GET %s: %+v, %v, want %q", path, a, err, want)
		}
	}
	for path, want := range map[string]int{
		"/endpoints/" + e.UUID + "/artifacts/%7B" + processGUID + "%7D/" + eventHash + "/plain.txt": http.StatusNotFound,
		base + eventHash[1:] + "/plain.txt":          http.StatusNotFound,
		base + strings.Repeat("a", 129) + "/plain":   http.StatusNotFound,
		base + eventHash + "/":                       http.StatusNotFound,
		base + eventHash:                             http.StatusNotFound,
		base + eventHash + "/..%2f..%2fx":            http.StatusMovedPermanently,
		base + eventHash + "/x%2fplain.txt":          http.StatusNotFound,
		base + eventHash + "/%2e%2e/" + "/plain.txt": http.StatusMovedPermanently,
	} {
		if resp, _ := p.raw(path); resp.StatusCode != want {
			t.Errorf("GET %s: %d, want %d", path, resp.StatusCode, want)
		}
	}
	if log := p.log(); strings.Contains(strings.ToLower(log), "permissions violation") {
		t.Error("a service may not do on NATS what it has to")
	}
}

// TestArtifactRefusals sends what must not be stored.
func TestArtifactRefusals(t *testing.T) {
	p := start(t, t.TempDir(), "--tls", "off")
	e := p.enrol()
	for name, a := range map[string]artifact{
		"traversal":              {Filename: "../../up/escaped.txt"},
		"traversal, encoded":     {Filename: "..%2fx"},
		"Windows traversal":      {Filename: `..\..\x`},
		"absolute":               {Filename: "/etc/passwd"},
		"parent":                 {Filename: ".."},
		"folder":                 {Filename: "."},
		"nothing":                {},
		"question marks":         {Filename: "???"},
		"NUL":                    {Filename: "x\x00.txt"},
		"long name":              {Filename: strings.Repeat("x", 300)},
		"GUID":                   {Filename: "x", GUID: "zz"},
		"GUID without braces":    {Filename: "x", GUID: processGUID},
		"GUID with a traversal":  {Filename: "x", GUID: "../{" + processGUID + "}"},
		"hash":                   {Filename: "x", EventHash: "abcd"},
		"hash with a traversal":  {Filename: "x", EventHash: "../" + eventHash},
		"part 0":                 {Filename: "x", Total: 2},
		"part beyond":            {Filename: "x", Chunk: 3, Total: 2},
		"large, with a bad name": {Filename: "../x", Content: make([]byte, 1<<20)},
	} {
		if code := p.send(e, a); code != http.StatusBadRequest {
			t.Errorf("%s: %d", name, code)
		}
	}
	for _, body := range []string{"", "{", "[]", `{"filename":5}`, `{"filename":"x","content":"???"}`, `{"content":"` + strings.Repeat("A", 1<<20) + `?"}`} {
		if code, text := p.upload(e, strings.NewReader(body), false); code != http.StatusInternalServerError || text != "Failed to decode JSON\n" {
			t.Errorf("%.20s: %d %q", body, code, text)
		}
	}
	if code, text := p.upload(e, strings.NewReader("{}"), true); code != http.StatusInternalServerError || text != "Cannot create gzip reader\n" {
		t.Errorf("no gzip: %d %q", code, text)
	}
	stranger := e
	stranger.Key = "nope"
	if code := p.send(stranger, artifact{Filename: "x"}); code != http.StatusForbidden {
		t.Errorf("wrong key: %d", code)
	}
	// A gzip body of a few hundred kilobytes with more than is taken.
	var bomb bytes.Buffer
	w := gzip.NewWriter(&bomb)
	_, _ = io.WriteString(w, `{"filename":"x","guid":"{`+processGUID+`}","event-hash":"`+eventHash+`","content":"`)
	enc := base64.NewEncoder(base64.StdEncoding, w)
	_, _ = io.CopyN(enc, zeros{}, 210<<20)
	_ = enc.Close()
	_, _ = io.WriteString(w, `"}`)
	_ = w.Close()
	if code, _ := p.upload(e, &bomb, true); code != http.StatusRequestEntityTooLarge {
		t.Errorf("bomb: %d", code)
	}
	if list := p.artifacts(e, ""); len(list) != 0 {
		t.Errorf("stored are %+v", list)
	}
}

// zeros is zero bytes without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
