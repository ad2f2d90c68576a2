package gateway

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/objects"
)

const unavailableContainer = "Unavailable container\n"

// containerStore makes the object store, as the rule-engine does.
func (r *rig) containerStore() *objects.Store {
	r.t.Helper()
	if _, err := stream.EnsureObjects(r.t.Context(), r.bus.JS, stream.Containers, stream.Limits{}); err != nil {
		r.t.Fatal(err)
	}
	store, err := objects.Open(r.t.Context(), r.bus.JS, stream.Containers)
	if err != nil {
		r.t.Fatal(err)
	}
	return store
}

// putContainer gives a container lines in place of those it has. The client's own
// Put may leave a goroutine behind.
func putContainer(t *testing.T, store *objects.Store, name string, lines ...string) objects.Info {
	t.Helper()
	before, err := store.Info(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	draft, err := store.Write(t.Context(), bytes.NewReader(message.EncodeContainer(lines)))
	if err != nil {
		t.Fatal(err)
	}
	info, err := store.Name(t.Context(), name, draft, nil, before)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func hexSum(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// TestContainers takes agents through the life of containers, with no more
// than the gateway's own rights on NATS.
func TestContainers(t *testing.T) {
	own, all := restricted(t)
	r := &rig{t: t, bus: all, connect: own}
	r.run(nil)
	e := r.endpoint()
	get := func(path string) string {
		t.Helper()
		a := r.agent(e, "GET", path, nil)
		if a.err != nil {
			t.Fatalf("%s: %v", path, a.err)
		}
		return a.body
	}
	if got := get("/containers"); got != "[]" {
		t.Fatalf("without an object store: %q", got)
	}
	store := r.containerStore()
	putContainer(t, store, "hosts", "one.example", "Two.Example", "two.example", "")
	none := putContainer(t, store, "none")
	eventually(t, "both containers are listed", func() bool { return get("/containers") == `["hosts","none"]` })

	for _, tc := range []struct {
		path string
		code int
		body string
	}{
		{"/containers", 200, `["hosts","none"]`},
		{"/container/hosts", 200, `["one.example","Two.Example","two.example",""]`},
		{"/container/none", 200, "[]"},
		{"/container/other", 404, unavailableContainer},
		{"/container/sha256", 404, unavailableContainer},
		{"/container/sha256/hosts", 200, hexSum("one.exampleTwo.Exampletwo.example")},
		{"/container/sha256/none", 200, hexSum("")},
		{"/container/sha256/other", 404, unavailableContainer},
		{"/container/", 404, notFound},
		{"/container/hosts/", 404, notFound},
	} {
		t.Run(tc.path, func(t *testing.T) {
			a := r.agent(e, "GET", tc.path, nil)
			if a.code != tc.code || a.body != tc.body || a.err != nil {
				t.Errorf("%d %q %v, want %d %q", a.code, a.body, a.err, tc.code, tc.body)
			}
			if got := a.header.Get("Content-Type"); got != contentText {
				t.Errorf("Content-Type %q", got)
			}
			if got := a.header.Get("Content-Length"); got != strconv.Itoa(len(tc.body)) {
				t.Errorf("Content-Length %q", got)
			}
			if got := a.header.Get("X-Content-Type-Options"); (got == "nosniff") != (tc.code == 404) {
				t.Errorf("X-Content-Type-Options %q", got)
			}
			if a := r.do("GET", r.svc.AgentAddr(), tc.path, nil, map[string]string{"UUID": e.UUID, "Api-Key": "wrong"}); tc.body != notFound && a.code != 403 {
				t.Errorf("with a wrong key: %d", a.code)
			}
			if a := r.agent(e, "POST", tc.path, nil); tc.body != notFound && a.code != 405 {
				t.Errorf("POST: %d", a.code)
			}
		})
	}

	t.Run("change", func(t *testing.T) {
		read := testutil.ToFloat64(r.svc.metrics.hashed)
		putContainer(t, store, "hosts", "three")
		eventually(t, "the hash changes", func() bool { return get("/container/sha256/hosts") == hexSum("three") })
		if got := get("/container/hosts"); got != `["three"]` {
			t.Errorf("%q", got)
		}
		if n := testutil.ToFloat64(r.svc.metrics.hashed) - read; n != 1 {
			t.Errorf("%v containers were read, want only the one that has changed", n)
		}
	})
	t.Run("deletion", func(t *testing.T) {
		if _, err := store.Delete(t.Context(), none); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is no longer listed", func() bool { return get("/containers") == `["hosts"]` })
		if got := get("/container/sha256/none"); got != unavailableContainer {
			t.Errorf("%q", got)
		}
	})
	t.Run("restart", func(t *testing.T) {
		r.restart()
		if got := get("/container/hosts"); got != `["three"]` {
			t.Errorf("%q", got)
		}
	})
	t.Run("store is lost", func(t *testing.T) {
		if err := r.bus.JS.DeleteObjectStore(t.Context(), stream.Containers); err != nil {
			t.Fatal(err)
		}
		eventually(t, "nothing is listed", func() bool { return get("/containers") == "[]" })
		putContainer(t, r.containerStore(), "new", "line")
		eventually(t, "the new store is found", func() bool { return get("/containers") == `["new"]` })
		if got := get("/container/new"); got != `["line"]` {
			t.Errorf("%q", got)
		}
	})
}

// TestLargeContainer reads a container of many chunks, then takes chunks away.
func TestLargeContainer(t *testing.T) {
	r := newRig(t, nil)
	e := r.endpoint()
	store := r.containerStore()
	lines := []string{strings.Repeat("ä€𝄞\r", maxLinePiece), "", "<tag>&"}
	for n := range 50_000 {
		lines = append(lines, "host-"+strconv.Itoa(n)+".example")
	}
	info := putContainer(t, store, "large", lines...)
	lines[0] = strings.TrimSuffix(lines[0], "\r")
	eventually(t, "it is listed", func() bool { return r.agent(e, "GET", "/containers", nil).body == `["large"]` })
	a := r.agent(e, "GET", "/container/large", nil)
	var got []string
	if err := json.Unmarshal([]byte(a.body), &got); err != nil || !slices.Equal(got, lines) {
		t.Fatalf("%d lines instead of %d, %v, %v", len(got), len(lines), err, a.err)
	}
	if sum := r.agent(e, "GET", "/container/sha256/large", nil).body; sum != hexSum(strings.Join(got, "")) {
		t.Errorf("the SHA-256 is %s", sum)
	}

	name, _ := stream.ObjectStream(stream.Containers)
	str, err := r.bus.JS.Stream(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	chunks := stream.ObjectChunks(stream.Containers, info.NUID)
	last, err := str.GetLastMsgForSubject(t.Context(), chunks)
	if err != nil {
		t.Fatal(err)
	}
	if err := str.DeleteMsg(t.Context(), last.Sequence); err != nil {
		t.Fatal(err)
	}
	if a := r.agent(e, "GET", "/container/large", nil); a.code != 200 || a.err == nil {
		t.Errorf("without its last chunk: %d, %d bytes, %v; want a broken connection", a.code, len(a.body), a.err)
	}
	if err := str.Purge(t.Context(), jetstream.WithPurgeSubject(chunks)); err != nil {
		t.Fatal(err)
	}
	if a := r.agent(e, "GET", "/container/large", nil); a.code != 503 || a.header.Get("Retry-After") == "" || a.header.Get("Content-Type") != contentText {
		t.Errorf("without its chunks: %d %v %q", a.code, a.header, a.body)
	}
}

// TestUnreadableContainer has a description without chunks: it is listed and
// tried again, and does no harm to the others.
func TestUnreadableContainer(t *testing.T) {
	r := newRig(t, nil)
	e := r.endpoint()
	store := r.containerStore()
	putContainer(t, store, "good", "a")
	_, filter := stream.ObjectStream(stream.Containers)
	for subject, description := range map[string]string{
		"torn": `no json`,
		base64.URLEncoding.EncodeToString([]byte("lost")): `{"name":"lost","nuid":"lost","size":2,"chunks":1,"digest":"SHA-256=x"}`,
	} {
		if _, err := r.bus.JS.Publish(t.Context(), strings.TrimSuffix(filter, ">")+subject, []byte(description)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "they are listed", func() bool { return r.agent(e, "GET", "/containers", nil).body == `["good","lost"]` })
	for _, path := range []string{"/container/lost", "/container/sha256/lost"} {
		if a := r.agent(e, "GET", path, nil); a.code != 503 || a.header.Get("Retry-After") == "" {
			t.Errorf("%s: %d %q", path, a.code, a.body)
		}
	}
	if a := r.agent(e, "GET", "/container/good", nil); a.body != `["a"]` {
		t.Errorf("%d %q", a.code, a.body)
	}
	read := testutil.ToFloat64(r.svc.metrics.hashed)
	eventually(t, "it is tried again", func() bool { return testutil.ToFloat64(r.svc.metrics.hashed) > read })
	putContainer(t, store, "lost", "found")
	eventually(t, "it is read", func() bool { return r.agent(e, "GET", "/container/lost", nil).body == `["found"]` })
}

func TestContainersNotKnown(t *testing.T) {
	if _, err := newAgentContainers(&Service{}).get(canceled()); !fault.Is(err, fault.Unavailable) {
		t.Errorf("%v, want %v", err, http.StatusText(http.StatusServiceUnavailable))
	}
}
