package artifact

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
	"github.com/nightjar-edr/nightjar/pkg/objects"
)

type rig struct {
	t     *testing.T
	bus   *bus.Bus
	store *Store
}

func newRig(t *testing.T) *rig {
	t.Helper()
	b := natstest.Start(t).Bus(t, "test")
	if _, err := Open(t.Context(), b.JS); !errors.Is(err, ErrStore) {
		t.Fatalf("without the object store: %v", err)
	}
	if _, err := stream.EnsureObjects(t.Context(), b.JS, stream.Artifacts, stream.Limits{}); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), b.JS)
	if err != nil {
		t.Fatal(err)
	}
	return &rig{t, b, s}
}

func body(file string, content []byte, chunk, total int) io.Reader {
	return strings.NewReader(fmt.Sprintf(`{"filename":%q,"guid":"{%s}","event-hash":"%s","content":"%s","chunk":%d,"total":%d}`,
		file, guid, hash, base64.StdEncoding.EncodeToString(content), chunk, total))
}

func (r *rig) send(file string, content []byte, chunk, total int) error {
	return r.store.Receive(r.t.Context(), endpoint, body(file, content, chunk, total))
}

func (r *rig) mustSend(file string, content []byte, chunk, total int) {
	r.t.Helper()
	if err := r.send(file, content, chunk, total); err != nil {
		r.t.Fatalf("%s %d/%d: %v", file, chunk, total, err)
	}
}

func id(file string) message.ArtifactID {
	return message.ArtifactID{Endpoint: endpoint, Process: guid, Event: hash, File: file}
}

func (r *rig) expect(file string, want []byte) {
	r.t.Helper()
	o, size, err := r.store.Get(r.t.Context(), id(file))
	if err != nil {
		r.t.Fatal(err)
	}
	got, err := io.ReadAll(o)
	if err != nil || !bytes.Equal(got, want) || size != uint64(len(want)) {
		r.t.Fatalf("%s: %d bytes of %d, want %d, %v", file, len(got), size, len(want), err)
	}
}

// subjects are those that the stream has messages on: two for each file that
// is not empty.
func (r *rig) subjects() map[string]uint64 {
	r.t.Helper()
	info, err := r.store.stream.Info(r.t.Context(), jetstream.WithSubjectFilter(">"))
	if err != nil {
		r.t.Fatal(err)
	}
	return info.State.Subjects
}

func TestReceive(t *testing.T) {
	r := newRig(t)
	large := bytes.Repeat([]byte("\x00\x01x"), 300_000)
	r.mustSend("large", large, 0, 0)
	r.mustSend("small", []byte("small"), 1, 1)
	r.mustSend("empty", nil, 0, 0)
	check := func() {
		t.Helper()
		r.expect("large", large)
		r.expect("small", []byte("small"))
		r.expect("empty", nil)
		if n := len(r.subjects()); n != 5 {
			t.Errorf("%d subjects", n)
		}
	}
	check()
	r.mustSend("large", large, 0, 0)
	r.mustSend("small", []byte("small"), 0, 0)
	r.mustSend("empty", []byte{}, 0, 0)
	check()
	for _, content := range [][]byte{nil, []byte("other"), large[1:]} {
		if err := r.send("small", content, 0, 0); !fault.Is(err, fault.Conflict) {
			t.Errorf("another content: %v", err)
		}
	}
	for name, in := range map[string]io.Reader{
		"invalid name":   body("../x", large, 0, 0),
		"malformed":      strings.NewReader(`{"content":"` + strings.Repeat("AAAA", keepContent) + `?"}`),
		"twice":          strings.NewReader(`{"content":"` + strings.Repeat("AAAA", keepContent) + `","content":"` + strings.Repeat("AAAA", keepContent) + `"}`),
		"broken off":     io.LimitReader(body("new", large, 0, 0), 1_000_000),
		"part beyond it": body("new", large, 3, 2),
	} {
		if err := r.store.Receive(t.Context(), endpoint, in); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	check()
	info, err := r.store.content.Info(t.Context(), id("small").Object())
	sum := sha256.Sum256([]byte("small"))
	if err != nil || info.Metadata[message.ArtifactSHA256] != hex.EncodeToString(sum[:]) {
		t.Errorf("%+v, %v", info, err)
	}
	if _, _, err := r.store.Get(t.Context(), id("nope")); !fault.Is(err, fault.NotFound) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestParts(t *testing.T) {
	r := newRig(t)
	whole := bytes.Repeat([]byte("0123456789"), 100_000)
	part := func(n int) []byte { return whole[(n-1)*250_000 : n*250_000] }
	for _, order := range [][]int{{1, 2, 3, 4}, {4, 3, 2, 1}, {2, 2, 4, 1, 1, 3}} {
		file := fmt.Sprintf("file%d%d", len(order), order[0])
		for i, n := range order {
			if _, _, err := r.store.Get(t.Context(), id(file)); !fault.Is(err, fault.NotFound) {
				t.Fatalf("before part %d of %v: %v", i, order, err)
			}
			r.mustSend(file, part(n), n, 4)
		}
		r.expect(file, whole)
	}
	if n := len(r.subjects()); n != 6 {
		t.Errorf("%d subjects: parts are left", n)
	}
	// The same again, and another.
	for n := 1; n <= 4; n++ {
		r.mustSend("file41", part(n), n, 4)
	}
	r.mustSend("file41", part(1), 1, 2)
	if err := r.send("file41", []byte("other"), 1, 2); !fault.Is(err, fault.Conflict) {
		t.Errorf("another content of a part: %v", err)
	}
	if err := r.send("file41", part(2), 2, 2); !fault.Is(err, fault.Conflict) {
		t.Errorf("a file of two parts in place of one of four: %v", err)
	}
	r.expect("file41", whole)
	if n := len(r.subjects()); n != 6 {
		t.Errorf("%d subjects: parts are left", n)
	}
}

// Of many files that are sent under one name at once, one is kept.
func TestAtOnce(t *testing.T) {
	r := newRig(t)
	const uploads, contents = 24, 3
	content := func(i int) []byte { return bytes.Repeat([]byte{byte(i % contents)}, 100_000) }
	accepted := make([]bool, uploads)
	var work sync.WaitGroup
	for i := range uploads {
		work.Go(func() {
			err := r.send("x", content(i), 0, 0)
			if accepted[i] = err == nil; err != nil && !fault.Is(err, fault.Conflict) {
				t.Error(err)
			}
		})
	}
	work.Wait()
	kept := -1
	for i := range accepted {
		if accepted[i] {
			kept = i % contents
			break
		}
	}
	for i := range accepted {
		if accepted[i] != (i%contents == kept) {
			t.Errorf("upload %d of content %d is accepted %t, content %d was kept", i, i%contents, accepted[i], kept)
		}
	}
	r.expect("x", content(kept))

	// And all parts of one at once, each twice.
	for i := range 16 {
		work.Go(func() {
			if err := r.send("parts", content(i/2), i/2+1, 8); err != nil {
				t.Error(err)
			}
		})
	}
	work.Wait()
	var want []byte
	for i := range 8 {
		want = append(want, content(i)...)
	}
	r.mustSend("parts", content(7), 8, 8) // where a part was taken for a new upload's
	r.expect("parts", want)
}

func TestDamaged(t *testing.T) {
	r := newRig(t)
	r.mustSend("x", bytes.Repeat([]byte("x"), 100_000), 0, 0)
	info, err := r.store.content.Info(t.Context(), id("x").Object())
	if err != nil {
		t.Fatal(err)
	}
	info.Name, info.Digest = id("y").Object(), "SHA-256="+base64.URLEncoding.EncodeToString(make([]byte, 32))
	data, err := json.Marshal(info.ObjectInfo)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.bus.JS.Publish(t.Context(), metaSubject(info.Name), data); err != nil {
		t.Fatal(err)
	}
	o, _, err := r.store.Get(t.Context(), id("y"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(o); !errors.Is(err, objects.ErrDamaged) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.store.Receive(ctx, endpoint, body("z", []byte("z"), 0, 0)); !errors.Is(err, ErrStore) {
		t.Errorf("client gone: %v", err)
	}
}
