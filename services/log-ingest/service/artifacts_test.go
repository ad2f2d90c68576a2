package ingest

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
)

const process = "515cd0d1-ab35-60e4-827c-000000004e00"

func artifactOf(endpoint, file string) message.ArtifactID {
	return message.ArtifactID{Endpoint: endpoint, Process: process, Event: strings.Repeat("ab", 16), File: file}
}

// put stores an object of one chunk.
func (r *rig) put(name, content string) {
	r.t.Helper()
	id := rand.Text()
	if content != "" {
		r.publish(artifactChunks+id, []byte(content))
	}
	r.describe(&jetstream.ObjectInfo{NUID: id, Size: uint64(len(content)),
		ObjectMeta: jetstream.ObjectMeta{Name: name, Metadata: map[string]string{message.ArtifactSHA256: "sum of " + content}}})
}

// describe publishes the description of an object.
func (r *rig) describe(info *jetstream.ObjectInfo) {
	r.t.Helper()
	info.Bucket = stream.Artifacts
	data, err := json.Marshal(info)
	if err != nil {
		r.t.Fatal(err)
	}
	r.publish(artifactMetas+base64.URLEncoding.EncodeToString([]byte(info.Name)), data)
}

func (r *rig) publish(subject string, data []byte) {
	r.t.Helper()
	if _, err := r.bus.JS.Publish(r.t.Context(), subject, data); err != nil {
		r.t.Fatal(err)
	}
}

// listed returns the files of an endpoint's artifacts, and how many pages they
// came in.
func (r *rig) listed(endpoint string) (all []message.Artifact, pages int) {
	r.t.Helper()
	for q := (message.ArtifactsListRequest{Endpoint: endpoint}); ; {
		reply, err := bus.Call[message.ArtifactsListReply](r.t.Context(), r.bus, message.ArtifactsList, q)
		if err != nil {
			r.t.Fatal(err)
		}
		all, pages = append(all, reply.Artifacts...), pages+1
		if q.After = reply.Next; q.After == "" {
			return all, pages
		}
	}
}

func names(list []message.Artifact) string {
	var s []string
	for _, a := range list {
		s = append(s, a.File)
	}
	return strings.Join(s, " ")
}

// What is stored is listed at once, and after a restart, with an old store and
// with a new one.
func TestArtifacts(t *testing.T) {
	r := newRig(t)
	r.start()
	if list, _ := r.listed(one); len(list) != 0 {
		t.Errorf("nothing is stored, but listed is %+v", list)
	}
	began := time.Now()
	for _, file := range []string{"b", "a", "a.gz", "b"} {
		r.put(artifactOf(one, file).Object(), "content of "+file)
	}
	r.put(artifactOf(two, "z").Object(), "")
	r.put(artifactOf(one, "parts").Part(1, 2), "part")
	r.put("nothing like it", "x")
	check := func() {
		t.Helper()
		list, _ := r.listed(one)
		if names(list) != "a a.gz b" {
			t.Fatalf("listed is %q", names(list))
		}
		a := list[1]
		if a.ArtifactID != artifactOf(one, "a.gz") || a.Size != 15 || a.SHA256 != "sum of content of a.gz" || a.Time.Before(began.Add(-time.Second)) || a.Time.After(time.Now().Add(time.Second)) {
			t.Errorf("%+v", a)
		}
		if list, _ := r.listed(two); names(list) != "z" {
			t.Errorf("of the other endpoint %q is listed", names(list))
		}
	}
	check()
	r.restart(false)
	check()
	r.restart(true)
	check()

	o, err := r.bus.JS.ObjectStore(t.Context(), stream.Artifacts)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Delete(t.Context(), artifactOf(one, "a").Object()); err != nil {
		t.Fatal(err)
	}
	if list, _ := r.listed(one); names(list) != "a.gz b" {
		t.Errorf("after a deletion %q is listed", names(list))
	}
	for _, q := range []message.ArtifactsListRequest{{}, {Endpoint: "x"}, {Endpoint: one, After: "x"}, {Endpoint: one, After: artifactOf(two, "z").Object()}} {
		if _, err := bus.Call[message.ArtifactsListReply](t.Context(), r.bus, message.ArtifactsList, q); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", q, err)
		}
	}
}

func TestArtifactPages(t *testing.T) {
	r := newRig(t)
	r.start()
	const count = 2*artifactPage + 1
	for i := range count {
		r.describe(&jetstream.ObjectInfo{NUID: fmt.Sprint(i), ObjectMeta: jetstream.ObjectMeta{Name: artifactOf(one, fmt.Sprintf("%06d", i)).Object()}})
	}
	list, pages := r.listed(one)
	if len(list) != count || pages != 3 {
		t.Fatalf("%d artifacts on %d pages, want %d on 3", len(list), pages, count)
	}
	for i, a := range list {
		if a.File != fmt.Sprintf("%06d", i) {
			t.Fatalf("artifact %d is %q", i, a.File)
		}
	}
}

// Parts of files and content without a name are removed when they are old
// enough, and nothing else is.
func TestArtifactTidy(t *testing.T) {
	r := newRig(t)
	r.start()
	x := r.svc.artifacts
	r.put(artifactOf(one, "file").Object(), "content")
	r.put(artifactOf(one, "file").Part(2, 3), "part")
	r.publish(artifactChunks+"nameless", []byte("content without a name"))
	left := func() int {
		info, err := x.stream.Info(t.Context(), jetstream.WithSubjectFilter(">"))
		if err != nil {
			t.Fatal(err)
		}
		return len(info.State.Subjects)
	}
	if n, err := x.tidy(t.Context()); n != 0 || err != nil || left() != 5 {
		t.Errorf("removed %d, left %d, %v", n, left(), err)
	}
	later := *x
	later.now = func() time.Time { return time.Now().Add(remainsAge + time.Minute) }
	if n, err := later.tidy(t.Context()); n != 2 || err != nil || left() != 2 {
		t.Errorf("removed %d, left %d, %v", n, left(), err)
	}
	if list, _ := r.listed(one); names(list) != "file" {
		t.Errorf("listed is %q", names(list))
	}
}

// What is past its retention is not listed, even by an index built anew.
func TestArtifactRetention(t *testing.T) {
	r := newRig(t)
	r.cfg.RetentionAlerts = 3 * time.Second
	r.start()
	r.put(artifactOf(one, "old").Object(), "content")
	if list, _ := r.listed(one); names(list) != "old" {
		t.Fatalf("listed is %q", names(list))
	}
	r.eventually("it is gone", func() bool {
		list, _ := r.listed(one)
		return len(list) == 0
	})
	r.put(artifactOf(one, "new").Object(), "content")
	if list, _ := r.listed(one); names(list) != "new" {
		t.Errorf("listed is %q", names(list))
	}
}

// What retention has removed while its description was in hand does not come to
// be listed.
func TestArtifactRemovedInHand(t *testing.T) {
	r := newRig(t)
	r.start()
	if err := r.svc.artifacts.drop(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	r.put(artifactOf(one, "old").Object(), "content") // messages 1 and 2
	r.put(artifactOf(one, "new").Object(), "content")
	if list, _ := r.listed(one); names(list) != "new" {
		t.Errorf("listed is %q", names(list))
	}
}
