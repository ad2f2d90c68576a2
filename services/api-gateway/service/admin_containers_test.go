package gateway

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/objects"
)

// containerOwner is as much of the rule-engine as the gateway needs to change
// containers.
type containerOwner struct {
	mu     sync.Mutex
	store  *objects.Store
	asked  []message.ContainerPutRequest
	refuse error
}

func (r *rig) containerOwner() *containerOwner {
	r.t.Helper()
	o := &containerOwner{store: r.containerStore()}
	r.handle(message.ContainersPut, bus.JSON(o.put))
	r.handle(message.ContainersDelete, bus.JSON(o.delete))
	return o
}

func (o *containerOwner) refuseWith(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.refuse = err
}

func (o *containerOwner) put(ctx context.Context, q message.ContainerPutRequest) (reply message.ContainerReply, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked = append(o.asked, q)
	if o.refuse != nil {
		return reply, o.refuse
	}
	draft := objects.Draft(q.Content)
	before, err := o.store.Info(ctx, q.Name)
	if err != nil {
		return reply, err
	}
	if q.Append && before.Exists() {
		d, err := o.store.Write(ctx, io.MultiReader(o.store.Read(ctx, &before.ObjectInfo), o.store.ReadDraft(ctx, &draft)))
		if err != nil {
			return reply, err
		}
		draft = *d
	}
	info, err := o.store.Name(ctx, q.Name, &draft, nil, before)
	return message.ContainerReply{Container: message.Container{Name: q.Name, Lines: 7}, Revision: info.Seq}, err
}

func (o *containerOwner) delete(ctx context.Context, q message.ContainerDeleteRequest) (reply message.ContainerReply, err error) {
	before, err := o.store.Info(ctx, q.Name)
	if err == nil && !before.Exists() {
		err = fault.New(fault.NotFound, "Unknown container: %s", q.Name)
	}
	if err != nil {
		return reply, err
	}
	info, err := o.store.Delete(ctx, before)
	return message.ContainerReply{Revision: info.Seq}, err
}

// contents returns how many contents the object store holds.
func (r *rig) contents() int {
	r.t.Helper()
	name, _ := stream.ObjectStream(stream.Containers)
	s, err := r.bus.JS.Stream(r.t.Context(), name)
	if err != nil {
		r.t.Fatal(err)
	}
	info, err := s.Info(r.t.Context(), jetstream.WithSubjectFilter(stream.ObjectChunks(stream.Containers, "*")))
	if err != nil {
		r.t.Fatal(err)
	}
	return len(info.State.Subjects)
}

// TestAdminContainers takes operators through the life of containers, with no
// more than the gateway's own rights on NATS. Agents see each change once it is
// answered.
func TestAdminContainers(t *testing.T) {
	own, all := restricted(t)
	r := &rig{t: t, bus: all, connect: own}
	r.run(nil)
	e := r.endpoint()
	r.expect("GET", "/containers", "", ok("[]"))
	r.expect("GET", "/containers/hosts", "", nok("Unknown container: hosts"))
	r.expect("PUT", "/containers/hosts", "a\n", nok("the object store of containers is not there yet"))
	o := r.containerOwner()
	eventually(t, "the object store is found", func() bool { return strings.Contains(r.admin("PUT", "/containers/hosts", "").body, `"OK"`) })
	agents := func(want string) {
		t.Helper()
		if got := r.agent(e, "GET", "/container/hosts", nil).body; got != want {
			t.Errorf("agents get %q, want %q", got, want)
		}
	}
	agents("[]")
	put := ok(`{"name":"hosts","lines":7,"size":0,"sha256":"","modified":"0001-01-01T00:00:00Z"}`)
	r.expect("PUT", "/containers/hosts", "one.example\r\nTwo \"x\"\n\nlast", put)
	agents(`["one.example","Two \"x\"","","last"]`)
	r.expect("GET", "/containers/hosts", "", ok(`["one.example","Two \"x\"","","last"]`))
	r.expect("POST", "/containers/hosts", "more\n", put)
	agents(`["one.example","Two \"x\"","","last","more"]`)
	r.expect("POST", "/containers/other", "x", strings.Replace(put, "hosts", "other", 1))
	const text = "one.example\nTwo \"x\"\n\nlast\nmore\n"
	if a := r.admin("GET", "/containers/hosts?raw=true", ""); a.code != 200 || a.body != text || a.header.Get("Content-Type") != contentText ||
		a.header.Get("Content-Length") != fmt.Sprint(len(text)) || a.header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("raw: %d %v %q", a.code, a.header, a.body)
	}
	list := data[[]message.Container](r, "GET", "/containers", "")
	if len(list) != 2 || list[0].Name != "hosts" || list[0].Lines != 5 || list[0].Size != uint64(len(text)) || list[0].SHA256 != hexSum(text) ||
		time.Since(list[0].Modified) > time.Minute || list[1].Name != "other" || list[1].Lines != 1 {
		t.Errorf("listed %+v", list)
	}
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	_, _ = io.WriteString(w, "zip\n")
	_ = w.Close()
	if a := r.do("PUT", r.svc.AdminAddr(), "/containers/hosts", &zipped, map[string]string{"Api-Key": adminKey, "Content-Encoding": "gzip"}); a.body != put {
		t.Errorf("gzip: %d %s", a.code, a.body)
	}
	agents(`["zip"]`)
	r.expect("DELETE", "/containers/hosts", "", ok("null"))
	agents(unavailableContainer)
	r.expect("DELETE", "/containers/hosts", "", nok("Unknown container: hosts"))
	if q := o.asked[2]; !q.Append || q.Name != "hosts" || q.Actor != "admin" || q.Content.Size != 5 || q.Content.Chunks != 1 {
		t.Errorf("the owner was asked %+v", q)
	}
	want := []string{"container.replace hosts the object store of containers is not there yet", "container.replace hosts ok", "container.replace hosts ok",
		"container.append hosts ok", "container.append other ok", "container.replace hosts ok", "container.delete hosts ok", "container.delete hosts Unknown container: hosts"}
	var got []string
	for _, m := range r.messages(stream.Audit) {
		var a message.Audit
		if err := json.Unmarshal(m.Data, &a); err != nil {
			t.Fatal(err)
		}
		if line := a.Action + " " + a.Target + " " + a.Outcome; strings.HasPrefix(line, "container.") && (len(got) == 0 || got[len(got)-1] != line || line == want[1]) {
			got = append(got, line)
		}
	}
	// How often the missing store was noticed is left to chance.
	if len(got) < len(want) || strings.Join(got[len(got)-len(want)+1:], "\n") != strings.Join(want[1:], "\n") {
		t.Errorf("on record is\n%s", strings.Join(got, "\n"))
	}
}

// What is refused leaves nothing behind.
func TestContainersRefused(t *testing.T) {
	full := errors.New("full")
	var isFull atomic.Bool
	r := newRig(t, func(c *Config) {
		c.Full = func() error {
			if isFull.Load() {
				return full
			}
			return nil
		}
	})
	o := r.containerOwner()
	eventually(t, "the object store is found", func() bool { return strings.Contains(r.admin("PUT", "/containers/a", "x\n").body, `"OK"`) })
	long := strings.Repeat("x", message.MaxContainerLine)
	key := map[string]string{"Api-Key": adminKey}
	with := func(k, v string) map[string]string { return map[string]string{"Api-Key": adminKey, k: v} }
	for name, tc := range map[string]struct {
		method, path string
		body         io.Reader
		header       map[string]string
		code         int
		holds        string
	}{
		"no key":           {"PUT", "/containers/a", strings.NewReader("y"), nil, 403, forbidden},
		"no key, raw":      {"GET", "/containers/a?raw=1", nil, nil, 403, forbidden},
		"bad name":         {"PUT", "/containers/a%20b", strings.NewReader("y"), key, 200, `Invalid container name \"a b\"`},
		"long name":        {"POST", "/containers/" + strings.Repeat("x", 129), strings.NewReader("y"), key, 200, "Invalid container name"},
		"traversal":        {"PUT", "/containers/..%2fa", strings.NewReader("y"), key, 301, ""},
		"dots":             {"PUT", "/containers/..", strings.NewReader("y"), key, 301, ""},
		"no name":          {"PUT", "/containers/", strings.NewReader("y"), key, 404, notFound},
		"wrong verb":       {"PUT", "/containers", strings.NewReader("y"), key, 405, ""},
		"bad flag":         {"GET", "/containers/a?raw=yes", nil, key, 200, "Failed to parse raw parameter"},
		"JSON":             {"PUT", "/containers/a", strings.NewReader(`["y"]`), with("Content-Type", "application/json; charset=utf-8"), 200, "is text, one entry a line, not JSON"},
		"long line":        {"PUT", "/containers/a", strings.NewReader("y\n" + long + "y\n" + long), key, 200, "Container refused: line 2 is longer than 65536 bytes"},
		"many lines":       {"POST", "/containers/a", strings.NewReader(strings.Repeat("y\n", message.MaxContainerLines+1)), key, 200, "Container refused: more than 1000000 lines"},
		"no UTF-8":         {"PUT", "/containers/a", strings.NewReader(long + "\n\xff\xfey\x00"), key, 200, "Container refused: line 2 is not UTF-8"},
		"unknown encoding": {"PUT", "/containers/a", strings.NewReader("y"), with("Content-Encoding", "br"), 415, "unsupported content encoding"},
		"no gzip":          {"PUT", "/containers/a", strings.NewReader("yyyy"), with("Content-Encoding", "gzip"), 500, "gzip"},
		"torn gzip":        {"PUT", "/containers/a", torn(t), with("Content-Encoding", "gzip"), 400, "breaks off"},
		"bomb":             {"PUT", "/containers/a", bomb(t), with("Content-Encoding", "gzip"), 413, "inflates beyond its limit"},
	} {
		t.Run(name, func(t *testing.T) {
			a := r.do(tc.method, r.svc.AdminAddr(), tc.path, tc.body, tc.header)
			if a.code != tc.code || !strings.Contains(a.body, tc.holds) || tc.code == 200 && !strings.Contains(a.body, `"NOK"`) {
				t.Errorf("%d %s, want %d %s", a.code, a.body, tc.code, tc.holds)
			}
		})
	}
	// A client that is ended, or cut off, sends what the server takes for the end.
	for name, head := range map[string]string{
		"breaks off":           "Content-Length: 1000\r\n\r\ny\nz\n",
		"breaks off in chunks": "Transfer-Encoding: chunked\r\n\r\n4\r\ny\nz\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			conn := r.dial(r.svc.AdminAddr())
			fmt.Fprintf(conn, "PUT /containers/a HTTP/1.1\r\nHost: x\r\nApi-Key: %s\r\n%s", adminKey, head)
			if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if reply, err := io.ReadAll(conn); err != nil || !bytes.HasPrefix(reply, []byte("HTTP/1.1 400 ")) {
				t.Errorf("%q, %v, want 400", reply, err)
			}
		})
	}
	if r.expect("GET", "/containers/a", "", ok(`["x"]`)); r.contents() != 1 || len(o.asked) != 1 {
		t.Errorf("%d contents, and the owner was asked %d times", r.contents(), len(o.asked))
	}
	t.Run("by the owner", func(t *testing.T) {
		o.refuseWith(fault.New(fault.TooLarge, "would be too large"))
		if r.expect("POST", "/containers/a", "y\n", nok("would be too large")); r.contents() != 1 {
			t.Errorf("%d contents are left", r.contents())
		}
		// Whether it was done is not known, so the content must stay.
		o.refuseWith(fault.New(fault.Unavailable, "no idea"))
		if r.expect("POST", "/containers/a", "y\n", nok("no idea")); r.contents() != 2 {
			t.Errorf("%d contents are left", r.contents())
		}
	})
	t.Run("full", func(t *testing.T) {
		isFull.Store(true)
		r.expect("PUT", "/containers/a", "y\n", nok("the manager cannot store more: full"))
		r.expect("DELETE", "/containers/a", "", ok("null"))
	})
}

// torn is a gzip body that breaks off.
func torn(t *testing.T) io.Reader {
	t.Helper()
	b, err := io.ReadAll(zip(t, strings.NewReader(strings.Repeat("some line\n", 100))))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.NewReader(b[:len(b)-9])
}

// bomb is a small gzip body of a few lines with much in them.
func bomb(t *testing.T) io.Reader {
	t.Helper()
	return zip(t, strings.NewReader(strings.Repeat(strings.Repeat("x", 60_000)+"\n", 400)))
}

func zip(t *testing.T, r io.Reader) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := io.Copy(w, r); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// TestAdminContainerUnread has a container whose content is lost: that is an
// error, and never a part of it.
func TestAdminContainerUnread(t *testing.T) {
	r := newRig(t, nil)
	info := putContainer(t, r.containerStore(), "large", strings.Repeat(strings.Repeat("x", 1000)+"\n", 2000))
	eventually(t, "it is listed", func() bool { return len(data[[]message.Container](r, "GET", "/containers", "")) == 1 })
	name, _ := stream.ObjectStream(stream.Containers)
	str, err := r.bus.JS.Stream(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	last, err := str.GetLastMsgForSubject(t.Context(), stream.ObjectChunks(stream.Containers, info.NUID))
	if err != nil {
		t.Fatal(err)
	}
	if err := str.DeleteMsg(t.Context(), last.Sequence); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/containers/large", "/containers/large?raw=true"} {
		if a := r.admin("GET", path, ""); a.err == nil {
			t.Errorf("%s without its last chunk: %d bytes and no error", path, len(a.body))
		}
	}
	if err := str.Purge(t.Context(), jetstream.WithPurgeSubject(stream.ObjectChunks(stream.Containers, info.NUID))); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/containers/large", "/containers/large?raw=true"} {
		r.expect("GET", path, "", nok("the container cannot be read at the moment"))
	}
}
