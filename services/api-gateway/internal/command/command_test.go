package command

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
	"github.com/nightjar-edr/nightjar/pkg/objects"
)

const (
	testEndpoint = "0f5a3c1e-7b2d-4e6f-9a8b-1c2d3e4f5a6b"
	testCommand  = "6b5a4f3e-2d1c-4b8a-9f6e-2d7b1e3c5a0f"
)

func newStore(t *testing.T) *objects.Store {
	t.Helper()
	_, store := newFiles(t)
	return store
}

func newFiles(t *testing.T) (jetstream.JetStream, *objects.Store) {
	t.Helper()
	js := natstest.Start(t).Bus(t, "test").JS
	if _, err := stream.EnsureObjects(t.Context(), js, stream.Files, stream.Limits{}); err != nil {
		t.Fatal(err)
	}
	store, err := objects.Open(t.Context(), js, stream.Files)
	if err != nil {
		t.Fatal(err)
	}
	return js, store
}

// stored returns how many bytes a store has, those of descriptions included.
func stored(t *testing.T, store *objects.Store) uint64 {
	t.Helper()
	n, err := store.Size(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		body, name string
		args       []string
		timeout    time.Duration
	}{
		{`{}`, "", nil, 0},
		{`{"command-line":"  # nothing"}`, "", nil, 0},
		{`{"command-line":"whoami"}`, "whoami", nil, 0},
		{`{"command-line":"echo 'a b' \"c\" d\\ e \\\\"}`, "echo", []string{"a b", "c", "d e", `\`}, 0},
		{`{"command-line":"echo","timeout":10,"unknown":1}`, "echo", nil, 10 * time.Second},
		{`{"timeout":1.5}`, "", nil, 1500 * time.Millisecond},
		{`{"timeout":999999}`, "", nil, 999999 * time.Second},
		{`{"timeout":1000000}`, "", nil, time.Millisecond},
		{`{"timeout":10000000000}`, "", nil, 10 * time.Second},
		{`{"timeout":9223372036854775807}`, "", nil, 1<<63 - 1},
		{`{"timeout":"1m30s"}`, "", nil, 90 * time.Second},
		{`{"timeout":null}`, "", nil, 0},
	} {
		t.Run(tc.body, func(t *testing.T) {
			_, q, err := Parse([]byte(tc.body))
			if err != nil {
				t.Fatal(err)
			}
			if q.Name != tc.name || fmt.Sprint(q.Args) != fmt.Sprint(tc.args) || (q.Args == nil) != (tc.args == nil) || q.Timeout != tc.timeout {
				t.Fatalf("parsed as %+v", q)
			}
		})
	}
	for body, want := range map[string]string{
		``:                          "unexpected end of JSON input",
		`{nope`:                     "invalid character 'n' looking for beginning of object key string",
		`{"timeout":"soon"}`:        "json: cannot unmarshal string into Go struct field CommandAPI.timeout of type time.Duration",
		`{"timeout":true}`:          "json: cannot unmarshal bool into Go struct field CommandAPI.timeout of type time.Duration",
		`{"timeout":[1]}`:           "json: cannot unmarshal array into Go struct field CommandAPI.timeout of type time.Duration",
		`{"timeout":{}}`:            "json: cannot unmarshal object into Go struct field CommandAPI.timeout of type time.Duration",
		`{"timeout":1e30}`:          "json: cannot unmarshal number 1e30 into Go struct field CommandAPI.timeout of type time.Duration",
		`{"timeout":-1}`:            "timeout: must not be negative",
		`{"timeout":"-1s"}`:         "timeout: must not be negative",
		`{"command-line":1}`:        "json: cannot unmarshal number into Go struct field CommandAPI.command-line of type string",
		`{"command-line":"a \"b"}`:  "Failed to create command to execute: failed to parse command line:\u00a0EOF found when expecting closing quote",
		`{"fetch-files":"one.txt"}`: "json: cannot unmarshal string into Go struct field CommandAPI.fetch-files of type []string",
	} {
		if _, q, err := Parse([]byte(body)); err == nil || err.Error() != want {
			t.Errorf("%s: %+v, %v; want %s", body, q, err, want)
		}
	}
}

func TestReadDrops(t *testing.T) {
	store := newStore(t)
	dir, outside := t.TempDir(), t.TempDir()
	write := func(path string, size int64) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("content of "+filepath.Base(path)), 0o600); err != nil {
			t.Fatal(err)
		}
		if size > 0 {
			if err := os.Truncate(path, size); err != nil {
				t.Fatal(err)
			}
		}
	}
	link := func(target, path string) {
		t.Helper()
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(dir, "tool.sh"), 0)
	write(filepath.Join(dir, "sub", "other.sh"), 0)
	write(filepath.Join(dir, "large"), 700<<10)
	write(filepath.Join(dir, "too-large"), MaxDropFile+1)
	write(filepath.Join(outside, "secret"), 0)
	link(filepath.Join(outside, "secret"), filepath.Join(dir, "escape"))
	link(outside, filepath.Join(dir, "escape-dir"))
	link("sub/other.sh", filepath.Join(dir, "inner"))
	linked := filepath.Join(t.TempDir(), "linked")
	link(dir, linked)
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	resolved, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, dir string
		file      string
		want      string // name of the dropped file, or
		err       string
	}{
		{"relative", dir, "tool.sh", "tool.sh", ""},
		{"relative, in a folder", dir, "sub/other.sh", "other.sh", ""},
		{"relative, dots inside", dir, "sub/../tool.sh", "tool.sh", ""},
		{"absolute", dir, filepath.Join(dir, "tool.sh"), "tool.sh", ""},
		{"absolute, folder is a link", linked, filepath.Join(linked, "tool.sh"), "tool.sh", ""},
		{"absolute, folder is a link, resolved", linked, filepath.Join(resolved, "tool.sh"), "tool.sh", ""},
		{"link inside", dir, "inner", "inner", ""},
		{"large", dir, "large", "large", ""},
		{"missing", dir, "nosuchfile", "", "no such file or directory"},
		{"missing folder", filepath.Join(dir, "nosuchfolder"), "tool.sh", "", "no such file or directory"},
		{"dots", dir, "../" + filepath.Base(outside) + "/secret", "", "path escapes from parent"},
		{"absolute, outside", dir, filepath.Join(outside, "secret"), "", "outside of the folder"},
		{"absolute, beside", dir, dir + "-other/x", "", "outside of the folder"},
		{"link to outside", dir, "escape", "", "path escapes from parent"},
		{"folder link to outside", dir, "escape-dir/secret", "", "path escapes from parent"},
		{"absolute link to outside", dir, filepath.Join(dir, "escape"), "", "path escapes from parent"},
		{"folder", dir, "sub", "", "not a regular file"},
		{"pipe", dir, "pipe", "", "not a regular file"},
		{"too large", dir, "too-large", "", "larger than 104857600 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			up := NewUploads(store, testEndpoint)
			drops, err := ReadDrops(t.Context(), tc.dir, []string{"", tc.file}, up)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) || !strings.Contains(err.Error(), fmt.Sprintf("%q", tc.file)) {
					t.Fatalf("got %+v, %v; want an error with %q that names the file", drops, err, tc.err)
				}
				return
			}
			if err != nil || len(drops) != 1 || drops[0].Name != tc.want {
				t.Fatalf("got %+v, %v", drops, err)
			}
			b := drops[0].Data
			content := b.Data
			if b.Object != "" {
				info, err := existing(t.Context(), store, b.Object)
				if err != nil {
					t.Fatal(err)
				}
				if content, err = io.ReadAll(store.Read(t.Context(), &info.ObjectInfo)); err != nil {
					t.Fatal(err)
				}
			}
			if (b.Object != "") != (b.Size > message.MaxInlineBlob) || int64(len(content)) != b.Size || !bytes.HasPrefix(content, []byte("content of ")) {
				t.Fatalf("dropped %d bytes as %+v", len(content), b.Object)
			}
			if err := up.Discard(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
	}
	if n := stored(t, store); n != 0 {
		t.Errorf("%d bytes left", n)
	}
}

// TestWhole demands that a file that changes while it is read is refused.
func TestWhole(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "tool"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	look := func() os.FileInfo {
		t.Helper()
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	empty := look()
	if _, err := f.WriteString("tool"); err != nil {
		t.Fatal(err)
	}
	full := look()
	for _, tc := range []struct {
		name   string
		before os.FileInfo
		read   int64
		whole  bool
	}{
		{"as it is", full, 4, true},
		{"read in part", full, 3, false},
		{"read beyond", full, 5, false},
		{"grown", empty, 4, false},
		{"grown after it was read", empty, 0, false},
	} {
		if err := whole(f, tc.before, tc.read); (err == nil) != tc.whole {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	if err := os.Chtimes(f.Name(), time.Time{}, full.ModTime().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := whole(f, full, 4); err == nil {
		t.Error("a file that was written again is taken")
	}
}

// TestReadDropsFit has many small files fit into a record together.
func TestReadDropsFit(t *testing.T) {
	store := newStore(t)
	dir := t.TempDir()
	var names []string
	for i := range 12 {
		name := fmt.Sprintf("file-%d", i)
		if err := os.WriteFile(filepath.Join(dir, name), bytes.Repeat([]byte{byte(i)}, 200<<10), 0o600); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	drops, err := ReadDrops(t.Context(), dir, names, NewUploads(store, testEndpoint))
	if err != nil {
		t.Fatal(err)
	}
	record, err := json.Marshal(message.CommandRecord{Drop: drops})
	if err != nil || len(record) > message.MaxCommandRecord {
		t.Fatalf("record of %d bytes, %v", len(record), err)
	}
	if got, want := render(t, store, &message.CommandRecord{Drop: drops}), 12*base64.StdEncoding.EncodedLen(200<<10); len(got) < want {
		t.Fatalf("rendered as %d bytes, want at least %d", len(got), want)
	}
}

// render returns a command as it is shown.
func render(t *testing.T, store *objects.Store, r *message.CommandRecord) string {
	t.Helper()
	if err := Check(t.Context(), store, r); err != nil {
		t.Fatal(err)
	}
	var d Document
	d.Command(r)
	var b bytes.Buffer
	if err := d.Write(t.Context(), store, &b); err != nil {
		t.Fatal(err)
	}
	if text, ok := d.Inline(); ok != (len(r.Objects()) == 0) || ok && string(text) != b.String() {
		t.Fatalf("inline %t, %s", ok, text)
	}
	if !json.Valid(b.Bytes()) {
		t.Fatalf("not JSON: %s", b.String())
	}
	return b.String()
}

func TestDocument(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 30, 0, 123456789, time.UTC)
	for _, tc := range []struct {
		name string
		r    message.CommandRecord
		want string
	}{
		{"queued, nothing in it", message.CommandRecord{UUID: testCommand, State: message.CommandQueued},
			`{"uuid":"` + testCommand + `","name":"","args":null,"drop":[],"fetch":{},"stdout":null,"stderr":null,"error":"","sent":false,"background":false,"completed":false,"expect-json":false,"timeout":0,"sent-time":"0001-01-01T00:00:00Z"}`},
		{"sent, everything in it", message.CommandRecord{UUID: testCommand, State: message.CommandSent, Sent: at, Name: "sh", Args: []string{"-c", "a > b"},
			Drop:  []message.CommandFile{{UUID: "1", Name: "tool", Data: &message.CommandBlob{Data: []byte("hello")}}, {UUID: "2", Name: "none"}},
			Fetch: map[string]message.CommandFile{"b": {UUID: "4"}, `C:\a`: {UUID: "3"}}, Timeout: 10 * time.Second},
			`{"uuid":"` + testCommand + `","name":"sh","args":["-c","a \u003e b"],"drop":[{"uuid":"1","name":"tool","data":"aGVsbG8=","error":""},{"uuid":"2","name":"none","data":null,"error":""}],"fetch":{"C:\\a":{"uuid":"3","name":"","data":null,"error":""},"b":{"uuid":"4","name":"","data":null,"error":""}},"stdout":null,"stderr":null,"error":"","sent":true,"background":false,"completed":false,"expect-json":false,"timeout":10000000000,"sent-time":"2026-03-01T12:30:00.123456789Z"}`},
		{"completed", message.CommandRecord{UUID: testCommand, State: message.CommandCompleted, Sent: at, Name: "/bin/dir", Args: []string{},
			Stdout: &message.CommandBlob{JSON: true, Data: []byte(`{"a":[1,"<"]}`)}, Stderr: &message.CommandBlob{}, Error: "exit status 3", ExpectJSON: true},
			`{"uuid":"` + testCommand + `","name":"/bin/dir","args":[],"drop":[],"fetch":{},"stdout":{"a":[1,"\u003c"]},"stderr":"","error":"exit status 3","sent":true,"background":false,"completed":true,"expect-json":true,"timeout":0,"sent-time":"2026-03-01T12:30:00.123456789Z"}`},
		{"cancelled", message.CommandRecord{UUID: testCommand, State: message.CommandCancelled, Error: "cancelled"},
			`{"uuid":"` + testCommand + `","name":"","args":null,"drop":[],"fetch":{},"stdout":null,"stderr":null,"error":"cancelled","sent":false,"background":false,"completed":true,"expect-json":false,"timeout":0,"sent-time":"0001-01-01T00:00:00Z"}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := render(t, nil, &tc.r); got != tc.want {
				t.Fatalf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

// TestResult has results of all kinds come back as they were sent.
func TestResult(t *testing.T) {
	store := newStore(t)
	b64 := func(n int) string { return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{0, 0xff, 7}, n/3)) }
	large, huge := b64(message.MaxInlineBlob+300), b64(3<<20)
	longText := strings.Repeat("text <é> \\n ", 60<<10)
	longJSON := `{"lines":[` + strings.Repeat(`"line",`, 60<<10) + `1.50]}`
	for _, tc := range []struct {
		name, members string
		want          string // where it differs
		objects       int
	}{
		{"nothing", `"stdout":null,"stderr":null`, "", 0},
		{"small", `"stdout":"aGVsbG8K","stderr":"b29wcwo="`, "", 0},
		{"empty", `"stdout":"","stderr":""`, "", 0},
		{"JSON output", `"stdout":{"b":1.50,"a":[true,null]},"stderr":null`, "", 0},
		{"large output", `"stdout":"` + large + `","stderr":"` + huge + `"`, "", 2},
		{"output of text", `"stdout":"` + longText + `","stderr":null`, "", 1},
		{"output of much JSON", `"stdout":` + longJSON + `,"stderr":null`, "", 1},
		{"escaped base64", `"stdout":null,"stderr":"` + strings.ReplaceAll(huge, "/", `\/`) + `"`, `"stdout":null,"stderr":"` + huge + `"`, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			doc := func(members string) string {
				return `{"uuid":"` + testCommand + `","name":"/bin/x","args":["x","y"],"drop":[{"uuid":"1","name":"tool","data":null,"error":""}],` +
					`"fetch":{"a":{"uuid":"2","name":"","data":"` + large + `","error":""},"b":{"uuid":"3","name":"","data":null,"error":"no such file"}},` +
					members + `,"error":"exit status 3","sent":false,"background":false,"completed":false,"expect-json":true,"timeout":5,"sent-time":"0001-01-01T00:00:00Z"}`
			}
			up := NewUploads(store, testEndpoint)
			q, err := ReadResult(t.Context(), iotest.HalfReader(strings.NewReader(doc(tc.members))), up, plenty)
			if err != nil {
				t.Fatal(err)
			}
			record, err := json.Marshal(q)
			if err != nil || len(record) > message.MaxCommandRecord {
				t.Fatalf("result of %d bytes, %v", len(record), err)
			}
			if n := len(ResultObjects(q)); n != tc.objects+1 {
				t.Errorf("refers to %d objects, want %d", n, tc.objects+1)
			}
			r := &message.CommandRecord{UUID: q.UUID, State: message.CommandQueued, Name: q.Name, Args: q.Args, Drop: q.Drop, Fetch: q.Fetch,
				Stdout: q.Stdout, Stderr: q.Stderr, Error: q.Error, ExpectJSON: q.ExpectJSON, Timeout: 5}
			want := tc.members
			if tc.want != "" {
				want = tc.want
			}
			if got := render(t, store, r); got != doc(want) {
				t.Errorf("got  %.300s ...\nwant %.300s ...", got, doc(want))
			}
			if err := up.Discard(t.Context()); err != nil {
				t.Fatal(err)
			}
			if n := stored(t, store); n != 0 {
				t.Errorf("%d bytes left", n)
			}
		})
	}
}

// TestResultJSONBeside has the output that newer agents send as a value.
func TestResultJSONBeside(t *testing.T) {
	for body, want := range map[string]string{
		`{"stdout":"e30=","json":{"a":1},"expect-json":true}`:  `{"a":1}`,
		`{"stdout":"e30=","json":{"a":1},"expect-json":false}`: `"e30="`,
		`{"stdout":"e30=","json":null,"expect-json":true}`:     `"e30="`,
	} {
		q, err := ReadResult(t.Context(), strings.NewReader(body), NewUploads(nil, testEndpoint), plenty)
		if err != nil || q.Stdout == nil || string(q.Stdout.Data) != want {
			t.Errorf("%s: %+v, %v", body, q, err)
		}
	}
}

func TestResultMalformed(t *testing.T) {
	store := newStore(t)
	long := strings.Repeat("AAAA", keepString/4+100)
	broken := errors.New("broken off")
	full := errors.New("full")
	for _, tc := range []struct {
		name string
		body io.Reader
		grow func(int) error
		err  error
	}{
		{"nothing", strings.NewReader(""), plenty, ErrMalformed},
		{"no JSON", strings.NewReader("{nope"), plenty, ErrMalformed},
		{"array", strings.NewReader("[]"), plenty, ErrMalformed},
		{"two documents", strings.NewReader("{}{}"), plenty, ErrMalformed},
		{"wrong type", strings.NewReader(`{"uuid":1}`), plenty, ErrMalformed},
		{"stderr is no base64", strings.NewReader(`{"stderr":"*"}`), plenty, ErrMalformed},
		{"stderr is no text", strings.NewReader(`{"stderr":{}}`), plenty, ErrMalformed},
		{"long data is no base64", strings.NewReader(`{"fetch":{"a":{"data":"` + long + `*"}}}`), plenty, ErrMalformed},
		{"long data is not complete", strings.NewReader(`{"fetch":{"a":{"data":"` + long + `A"}}}`), plenty, ErrMalformed},
		{"ends in a long value", strings.NewReader(`{"stdout":"` + long), plenty, ErrMalformed},
		{"ends behind a long value", strings.NewReader(`{"stdout":"` + long + `"`), plenty, ErrMalformed},
		{"breaks off in a long value", io.MultiReader(strings.NewReader(`{"stdout":"`+long), iotest.ErrReader(broken)), plenty, broken},
		{"breaks off as HTTP does", io.MultiReader(strings.NewReader(`{"stderr":"`+long), iotest.ErrReader(io.ErrUnexpectedEOF)), plenty, io.ErrUnexpectedEOF},
		{"no memory", strings.NewReader(`{"uuid":"x"}`), func(int) error { return full }, full},
	} {
		t.Run(tc.name, func(t *testing.T) {
			up := NewUploads(store, testEndpoint)
			q, err := ReadResult(t.Context(), tc.body, up, tc.grow)
			if !errors.Is(err, tc.err) {
				t.Fatalf("got %+v, %v; want %v", q, err, tc.err)
			}
			if strings.Contains(err.Error(), "AAAA") {
				t.Errorf("the error shows contents: %.100s", err.Error())
			}
			if err := up.Discard(t.Context()); err != nil {
				t.Fatal(err)
			}
			if n := stored(t, store); n != 0 {
				t.Errorf("%d bytes left", n)
			}
		})
	}
}

// TestResultNoForgery has an agent send what stands for a value taken out.
func TestResultNoForgery(t *testing.T) {
	store := newStore(t)
	long := strings.Repeat("AAAA", keepString/4+100)
	q, err := ReadResult(t.Context(), strings.NewReader(`{"stderr":"`+long+`","stdout":"x.0","fetch":{"a":{"data":"MC4w"}}}`), NewUploads(store, testEndpoint), plenty)
	if err != nil {
		t.Fatal(err)
	}
	if q.Stderr.Object == "" || q.Stdout.Object != "" || string(q.Stdout.Data) != `"x.0"` || string(q.Fetch["a"].Data.Data) != "0.0" {
		t.Fatalf("read as %+v %+v %+v", q.Stderr, q.Stdout, q.Fetch["a"].Data)
	}
}

// TestResultStoreGone has a failing store told from a malformed result.
func TestResultStoreGone(t *testing.T) {
	js, store := newFiles(t)
	if err := js.DeleteObjectStore(t.Context(), stream.Files); err != nil {
		t.Fatal(err)
	}
	_, err := ReadResult(t.Context(), strings.NewReader(`{"stderr":"`+strings.Repeat("AAAA", keepString)+`"}`), NewUploads(store, testEndpoint), plenty)
	if !errors.Is(err, ErrStore) || errors.Is(err, ErrMalformed) {
		t.Fatalf("got %v", err)
	}
}

// A value that is removed while its command is shown ends the answer, and does
// not keep it waiting.
func TestValueRemovedMeanwhile(t *testing.T) {
	js, store := newFiles(t)
	blob, err := NewUploads(store, testEndpoint).Put(t.Context(), strings.NewReader(strings.Repeat("x", 1<<20)))
	if err != nil {
		t.Fatal(err)
	}
	info, err := store.Info(t.Context(), blob.Object)
	if err != nil {
		t.Fatal(err)
	}
	name, _ := stream.ObjectStream(stream.Files)
	s, err := js.Stream(t.Context(), name)
	if err == nil {
		err = s.Purge(t.Context(), jetstream.WithPurgeSubject(stream.ObjectChunks(stream.Files, info.NUID)))
	}
	if err != nil {
		t.Fatal(err)
	}
	var d Document
	d.Command(&message.CommandRecord{Stdout: blob})
	done := make(chan error)
	go func() { done <- d.Write(t.Context(), store, io.Discard) }()
	select {
	case err := <-done:
		if !errors.Is(err, ErrStore) {
			t.Errorf("got %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("still waiting after a minute")
	}
	if _, err := store.Delete(t.Context(), info); err != nil {
		t.Fatal(err)
	}
	if err := d.Write(t.Context(), store, io.Discard); !errors.Is(err, ErrStore) {
		t.Errorf("of a deleted object: %v", err)
	}
}

func TestHistory(t *testing.T) {
	r := message.CommandRecord{UUID: testCommand, State: message.CommandCompleted, Name: "x", Actor: "admin",
		Fetch:  map[string]message.CommandFile{"b": {Data: &message.CommandBlob{Size: 9}}, "a": {Error: "gone"}},
		Stdout: &message.CommandBlob{Size: 7}}
	got, err := json.Marshal(History(&r))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"uuid":"` + testCommand + `","state":"completed","name":"x","args":null,"drop":[],"fetch":[{"uuid":"","name":"a","size":0,"error":"gone"},{"uuid":"","name":"b","size":9,"error":""}],"stdout-size":7,"stderr-size":0,"error":"","timeout":0,"operator":"admin","created-time":"0001-01-01T00:00:00Z","sent-time":"0001-01-01T00:00:00Z","ended-time":"0001-01-01T00:00:00Z"}`
	if string(got) != want {
		t.Fatalf("got  %s\nwant %s", got, want)
	}
}
