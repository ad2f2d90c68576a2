package gateway

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
)

const (
	artifactGUID = "515cd0d1-ab35-60e4-827c-000000004e00"
	artifactHash = "2252cc3dee2623a44f5d1644338129b9"
)

func (r *rig) ensureArtifacts() {
	r.t.Helper()
	if _, err := stream.EnsureObjects(r.t.Context(), r.bus.JS, stream.Artifacts, stream.Limits{}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) uploadFile(e message.Endpoint, file string, content []byte) answer {
	r.t.Helper()
	return r.agent(e, http.MethodPost, "/upload/dumps", strings.NewReader(fmt.Sprintf(`{"filename":%q,"guid":"{%s}","event-hash":"%s","content":"%s"}`,
		file, artifactGUID, artifactHash, base64.StdEncoding.EncodeToString(content))))
}

// artifactPages answers ArtifactsList with pages of artifacts.
func artifactPages(all ...[]message.Artifact) bus.Handler {
	return bus.JSON(func(_ context.Context, q message.ArtifactsListRequest) (message.ArtifactsListReply, error) {
		n := len(q.After)
		if n >= len(all) {
			return message.ArtifactsListReply{}, fault.New(fault.Internal, "no page %d", n)
		}
		reply := message.ArtifactsListReply{Artifacts: all[n]}
		if n+1 < len(all) {
			reply.Next = strings.Repeat("x", n+1)
		}
		return reply, nil
	})
}

func TestArtifactFiles(t *testing.T) {
	r := newRig(t, nil)
	e := r.endpoint()
	if a := r.uploadFile(e, "x", nil); a.code != 503 || a.header.Get("Retry-After") == "" {
		t.Errorf("without an object store: %d %q", a.code, a.body)
	}
	base := "/endpoints/" + e.UUID + "/artifacts/" + artifactGUID + "/" + artifactHash + "/"
	r.expect("GET", base+"x", "", nok("artifacts cannot be reached at the moment"))
	r.ensureArtifacts()

	event := []byte(`{"hello":"artifact"}`)
	var zip bytes.Buffer
	w := gzip.NewWriter(&zip)
	_, _ = w.Write(event)
	_ = w.Close()
	torn := zip.Bytes()[:zip.Len()-9]
	page := []byte("<html><script>alert(1)</script></html>")
	for file, content := range map[string][]byte{"event.json.gz": zip.Bytes(), "plain.txt": []byte("plain text"), "torn.gz": torn, "empty": nil, "page": page} {
		if a := r.uploadFile(e, file, content); a.code != 200 || a.body != "" {
			t.Fatalf("%s: %d %q", file, a.code, a.body)
		}
	}
	encoded := func(b []byte) string { return `"` + base64.StdEncoding.EncodeToString(b) + `"` }
	for path, want := range map[string]string{
		"event.json.gz": ok(encoded(zip.Bytes())), "event.json.gz?gunzip=t": ok(encoded(event)), "plain.txt": ok(encoded([]byte("plain text"))),
		"plain.txt?raw=0&gunzip=F": ok(encoded([]byte("plain text"))), "empty": ok(`""`),
		"plain.txt?gunzip=1":         nok("Failed to gunzip file: gzip: invalid header"),
		"empty?gunzip=1":             nok("Failed to gunzip file: EOF"),
		"torn.gz?gunzip=1&raw=1":     nok("Failed to gunzip file: unexpected EOF"),
		"plain.txt?raw=yes":          nok("Failed to parse raw parameter, it must be a boolean"),
		"plain.txt?gunzip=&raw=true": nok("Failed to parse gunzip parameter, it must be a boolean"),
		"nope":                       nok("File not found"),
		"%3F%3F%3F":                  nok("File not found"),
	} {
		r.expect("GET", base+path, "", want)
	}
	for path, want := range map[string]struct{ body, content, length string }{
		"event.json.gz?raw=true":       {zip.String(), "application/x-gzip", fmt.Sprint(zip.Len())},
		"event.json.gz?raw=1&gunzip=t": {string(event), "text/plain; charset=utf-8", "20"},
		"plain.txt?raw=true":           {"plain text", "text/plain; charset=utf-8", "10"},
		"page?raw=true":                {string(page), "text/html; charset=utf-8", fmt.Sprint(len(page))},
	} {
		a := r.admin("GET", base+path, "")
		if a.code != 200 || a.body != want.body || a.header.Get("Content-Type") != want.content || a.header.Get("Content-Length") != want.length {
			t.Errorf("%s: %d %q %v", path, a.code, a.body, a.header)
		}
		if a.header.Get("X-Content-Type-Options") != "nosniff" || !strings.HasPrefix(a.header.Get("Content-Disposition"), "attachment;") {
			t.Errorf("%s: a browser would show it: %v", path, a.header)
		}
	}
	for _, tc := range []struct {
		method, path string
		key          string
		code         int
	}{
		{"GET", base + "plain.txt", "nope", 403},
		{"POST", base + "plain.txt", adminKey, 405},
		{"GET", base[:len(base)-2] + "/plain.txt", adminKey, 404},
		{"GET", strings.Replace(base, artifactGUID, "%7B"+artifactGUID+"%7D", 1) + "plain.txt", adminKey, 404},
		{"GET", base + "..%2f..%2fx", adminKey, 301},
	} {
		if a := r.do(tc.method, r.svc.AdminAddr(), tc.path, nil, map[string]string{"Api-Key": tc.key}); a.code != tc.code {
			t.Errorf("%s %s: %d %q, want %d", tc.method, tc.path, a.code, a.body, tc.code)
		}
	}
	if a := r.do("POST", r.svc.AgentAddr(), "/upload/dumps", strings.NewReader("{}"), nil); a.code != 403 {
		t.Errorf("upload of a stranger: %d", a.code)
	}
	if a := r.uploadFile(e, "../x", event); a.code != 400 {
		t.Errorf("traversal: %d", a.code)
	}
	if a := r.uploadFile(e, "plain.txt", event); a.code != 409 {
		t.Errorf("another content: %d", a.code)
	}
	if a := r.agent(e, "POST", "/upload/dumps", strings.NewReader("{")); a.code != 500 || a.body != "Failed to decode JSON\n" {
		t.Errorf("no JSON: %d %q", a.code, a.body)
	}
}

func TestArtifactUploadWhenFull(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Full = func() error { return fmt.Errorf("no room") } })
	r.ensureArtifacts()
	e := r.endpoint()
	if a := r.uploadFile(e, "x", nil); a.code != 503 || a.header.Get("Retry-After") == "" {
		t.Errorf("%d %q", a.code, a.body)
	}
}

func TestArtifactList(t *testing.T) {
	r := newRig(t, nil)
	e := r.endpoint()
	path := "/endpoints/" + e.UUID + "/artifacts"
	at := time.Date(2021, 7, 6, 19, 21, 50, 655802826, time.UTC)
	file := func(hash, name string, after time.Duration) message.Artifact {
		return message.Artifact{ArtifactID: message.ArtifactID{Endpoint: e.UUID, Process: artifactGUID, Event: hash, File: name}, Time: at.Add(after)}
	}
	second := strings.Repeat("f", 40)
	r.handle(message.ArtifactsList, artifactPages(
		[]message.Artifact{file(artifactHash, "a", -time.Hour), file(artifactHash, "b", 0)},
		[]message.Artifact{}, // the folder goes on behind an empty page
		[]message.Artifact{file(artifactHash, "c", -time.Minute), file(second, "a", time.Hour)},
		[]message.Artifact{file(second, "b", 0)},
	))
	one := `{"update":"2021-07-06T19:21:50.655802826Z","process-guid":"` + artifactGUID + `","event-hash":"` + artifactHash + `","base-url":"` + path + "/" + artifactGUID + "/" + artifactHash + `/","files":["a","b","c"]}`
	two := `{"update":"2021-07-06T20:21:50.655802826Z","process-guid":"` + artifactGUID + `","event-hash":"` + second + `","base-url":"` + path + "/" + artifactGUID + "/" + second + `/","files":["a","b"]}`
	for query, want := range map[string]string{
		"": ok("[" + one + "," + two + "]"), "?since=2021-07-06T17:19:42.835802162Z": ok("[" + one + "," + two + "]"),
		"?since=2021-07-06T19:21:50.655802826Z": ok("[" + one + "," + two + "]"),
		"?since=2021-07-06T19:21:50.655802827Z": ok("[" + two + "]"),
		"?since=2021-07-06T22:21:50%2B02:00":    ok("[" + two + "]"),
		"?since=2021-07-06T20:21:51Z":           ok("[]"),
		"?since=yesterday":                      nok(`Failed to parse since parameter: parsing time "yesterday" as "2006-01-02T15:04:05Z07:00": cannot parse "yesterday" as "2006"`),
		"?since=&other=1":                       ok("[" + one + "," + two + "]"),
	} {
		r.expect("GET", path+query, "", want)
	}
	r.expect("GET", "/endpoints/"+someUUID+"/artifacts", "", nok("Unknown endpoint: "+someUUID))
}

// The gateway stores and takes back uploads with its own rights.
func TestArtifactPermissions(t *testing.T) {
	own, all := restricted(t)
	r := &rig{t: t, bus: all, connect: own}
	r.run(nil)
	r.ensureArtifacts()
	e := r.endpoint()
	for _, want := range []int{200, 200} {
		if a := r.uploadFile(e, "x", []byte("content")); a.code != want {
			t.Errorf("%d %s", a.code, a.body)
		}
	}
	if a := r.uploadFile(e, "x", []byte("other")); a.code != 409 {
		t.Errorf("%d %s", a.code, a.body)
	}
	for n := 1; n <= 2; n++ {
		body := fmt.Sprintf(`{"filename":"parts","guid":"{%s}","event-hash":"%s","content":"AAAA","chunk":%d,"total":2}`, artifactGUID, artifactHash, n)
		if a := r.agent(e, "POST", "/upload/dumps", strings.NewReader(body)); a.code != 200 {
			t.Errorf("%d %s", a.code, a.body)
		}
	}
	s, err := r.bus.JS.Stream(t.Context(), "OBJ_"+stream.Artifacts)
	if err != nil {
		t.Fatal(err)
	}
	if n := s.CachedInfo().State.Msgs; n != 4 {
		t.Errorf("%d messages are stored, want the content and the description of two files", n)
	}
	base := "/endpoints/" + e.UUID + "/artifacts/" + artifactGUID + "/" + artifactHash + "/"
	r.expect("GET", base+"x", "", ok(`"Y29udGVudA=="`))
	r.expect("GET", base+"parts", "", ok(`"AAAAAAAA"`))
}
