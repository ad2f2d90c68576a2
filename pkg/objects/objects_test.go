package objects_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
	"github.com/nightjar-edr/nightjar/pkg/objects"
)

type rig struct {
	t      *testing.T
	js     jetstream.JetStream
	store  *objects.Store
	client jetstream.ObjectStore
	stream jetstream.Stream
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, js: natstest.Start(t).Bus(t, "test").JS}
	var err error
	if r.client, err = stream.EnsureObjects(t.Context(), r.js, stream.Containers, stream.Limits{}); err != nil {
		t.Fatal(err)
	}
	if r.store, err = objects.Open(t.Context(), r.js, stream.Containers); err != nil {
		t.Fatal(err)
	}
	name, _ := stream.ObjectStream(stream.Containers)
	if r.stream, err = r.js.Stream(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	return r
}

// put stores content under a name as it is now.
func (r *rig) put(name, content string) objects.Info {
	r.t.Helper()
	before, err := r.store.Info(r.t.Context(), name)
	if err != nil {
		r.t.Fatal(err)
	}
	d, err := r.store.Write(r.t.Context(), strings.NewReader(content))
	if err != nil {
		r.t.Fatal(err)
	}
	after, err := r.store.Name(r.t.Context(), name, d, nil, before)
	if err != nil {
		r.t.Fatal(err)
	}
	return after
}

// contents returns how many contents are stored, with a name or without.
func (r *rig) contents() int {
	r.t.Helper()
	info, err := r.stream.Info(r.t.Context(), jetstream.WithSubjectFilter(stream.ObjectChunks(stream.Containers, "*")))
	if err != nil {
		r.t.Fatal(err)
	}
	return len(info.State.Subjects)
}

func eventually(t *testing.T, f func() error) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// What is written here is read by every client, and the other way round.
func TestFormat(t *testing.T) {
	r := newRig(t)
	if last, err := r.store.Last(t.Context()); last != 0 || err != nil {
		t.Errorf("the last of none is %d, %v", last, err)
	}
	large := strings.Repeat("0123456789", objects.ChunkSize/4)
	for name, content := range map[string]string{"empty": "", "small": "x", "one chunk": large[:objects.ChunkSize], "many chunks": large} {
		t.Run(name, func(t *testing.T) {
			info := r.put(name, content)
			got, err := r.client.GetBytes(t.Context(), name)
			if err != nil || string(got) != content {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			theirs, err := r.client.GetInfo(t.Context(), name)
			if err != nil || theirs.Digest != info.Digest || theirs.Size != info.Size || theirs.Size != uint64(len(content)) || theirs.Chunks != info.Chunks {
				t.Errorf("described as %+v, %v", theirs, err)
			}
			if _, err := r.client.PutBytes(t.Context(), name, []byte(content)); err != nil {
				t.Fatal(err)
			}
			ours, err := r.store.Info(t.Context(), name)
			if err != nil || ours.Seq <= info.Seq || !ours.Exists() || time.Since(ours.ModTime) > time.Minute {
				t.Errorf("described as %+v, %v", ours, err)
			}
			if got, err = io.ReadAll(r.store.Read(t.Context(), &ours.ObjectInfo)); err != nil || string(got) != content {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if err := r.client.Delete(t.Context(), name); err != nil {
				t.Fatal(err)
			}
			if ours, err = r.store.Info(t.Context(), name); err != nil || ours.Exists() || ours.Seq == 0 {
				t.Errorf("deleted: %+v, %v", ours, err)
			}
		})
	}
	last, err := r.store.Last(t.Context())
	if info, lookup := r.store.Info(t.Context(), "small"); err != nil || lookup != nil || last < info.Seq || last == 0 {
		t.Errorf("the last is %d, %v, %v", last, err, lookup)
	}
	if info, err := r.store.Info(t.Context(), "never"); err != nil || info.Seq != 0 || info.Exists() {
		t.Errorf("%+v, %v", info, err)
	}
	if _, err := objects.Open(t.Context(), r.js, "missing"); !errors.Is(err, objects.ErrStore) {
		t.Errorf("missing store: %v", err)
	}
}

// Who comes second learns that it does, and has changed nothing.
func TestCompareAndSet(t *testing.T) {
	r := newRig(t)
	first := r.put("a", "one")
	second := r.put("a", "two")
	late, err := r.store.Write(t.Context(), strings.NewReader("late"))
	if err != nil {
		t.Fatal(err)
	}
	for what, f := range map[string]func() (objects.Info, error){
		"name":     func() (objects.Info, error) { return r.store.Name(t.Context(), "a", late, nil, first) },
		"new":      func() (objects.Info, error) { return r.store.Name(t.Context(), "a", late, nil, objects.Info{}) },
		"annotate": func() (objects.Info, error) { return r.store.Annotate(t.Context(), map[string]string{"k": "v"}, first) },
		"delete":   func() (objects.Info, error) { return r.store.Delete(t.Context(), first) },
	} {
		if _, err := f(); !errors.Is(err, objects.ErrChanged) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got, err := r.client.GetBytes(t.Context(), "a"); err != nil || string(got) != "two" {
		t.Fatalf("%q, %v", got, err)
	}
	noted, err := r.store.Annotate(t.Context(), map[string]string{"k": "v"}, second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.store.Delete(t.Context(), noted); err != nil {
		t.Fatal(err)
	}
	gone, err := r.store.Info(t.Context(), "a")
	if err != nil || gone.Exists() || gone.Metadata["k"] != "v" {
		t.Errorf("deleted: %+v, %v", gone, err)
	}
	if _, err := r.store.Name(t.Context(), "a", late, nil, gone); err != nil {
		t.Error(err)
	}
}

func TestWriteFails(t *testing.T) {
	r := newRig(t)
	broken := errors.New("broken")
	if _, err := r.store.Write(t.Context(), io.MultiReader(bytes.NewReader(make([]byte, objects.ChunkSize+1)), iotest.ErrReader(broken))); !errors.Is(err, broken) || errors.Is(err, objects.ErrStore) {
		t.Errorf("reader: %v", err)
	}
	// What HTTP says of a body that breaks off is not the end of the content.
	for _, size := range []int{0, 1, objects.ChunkSize, objects.ChunkSize + 1} {
		body := io.MultiReader(bytes.NewReader(make([]byte, size)), iotest.ErrReader(io.ErrUnexpectedEOF))
		if d, err := r.store.Write(t.Context(), body); !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, objects.ErrStore) {
			t.Errorf("broken off after %d bytes: %+v, %v", size, d, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.store.Write(ctx, strings.NewReader("x")); !errors.Is(err, objects.ErrStore) {
		t.Errorf("context: %v", err)
	}
	if n := r.contents(); n != 0 {
		t.Errorf("%d contents left", n)
	}
}

func TestRemove(t *testing.T) {
	r := newRig(t)
	kept, gone := r.put("kept", "x"), r.put("gone", strings.Repeat("x", objects.ChunkSize+1))
	before, err := r.store.Size(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.store.Remove(t.Context(), gone.Name, gone.NUID); err != nil {
		t.Fatal(err)
	}
	if info, err := r.store.Info(t.Context(), gone.Name); err != nil || info.Seq != 0 {
		t.Errorf("described as %+v, %v", info, err)
	}
	if got, err := r.client.GetString(t.Context(), kept.Name); err != nil || got != "x" || r.contents() != 1 {
		t.Errorf("%d contents, the one kept is %q, %v", r.contents(), got, err)
	}
	if after, err := r.store.Size(t.Context()); err != nil || before-after < objects.ChunkSize+1 {
		t.Errorf("%d bytes before, %d after, %v", before, after, err)
	}
	if err := r.js.DeleteObjectStore(t.Context(), stream.Containers); err != nil {
		t.Fatal(err)
	}
	if err := r.store.Remove(t.Context(), kept.Name, kept.NUID); !errors.Is(err, objects.ErrStore) {
		t.Errorf("without the store: %v", err)
	}
}

// A part is never taken for the whole.
func TestDamaged(t *testing.T) {
	r := newRig(t)
	info := r.put("a", strings.Repeat("x", 2*objects.ChunkSize))
	other := info
	other.Digest = "SHA-256=" + base64.URLEncoding.EncodeToString(make([]byte, 32))
	if _, err := io.ReadAll(r.store.Read(t.Context(), &other.ObjectInfo)); !errors.Is(err, objects.ErrDamaged) {
		t.Errorf("wrong digest: %v", err)
	}
	last, err := r.stream.GetLastMsgForSubject(t.Context(), stream.ObjectChunks(stream.Containers, info.NUID))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.stream.DeleteMsg(t.Context(), last.Sequence); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r.store.Read(t.Context(), &info.ObjectInfo)); !errors.Is(err, objects.ErrStore) || len(got) != objects.ChunkSize {
		t.Errorf("lost chunk: %d bytes, %v", len(got), err)
	}
}

func TestTidy(t *testing.T) {
	r := newRig(t)
	old := r.put("kept", "one")
	r.put("kept", "two")
	if _, err := r.store.Delete(t.Context(), r.put("gone", "x")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.store.Write(t.Context(), strings.NewReader("draft")); err != nil {
		t.Fatal(err)
	}
	if n, err := r.store.Tidy(t.Context(), time.Now().Add(-time.Minute)); n != 0 || err != nil || r.contents() != 4 {
		t.Errorf("what is new: %d removed, %d left, %v", n, r.contents(), err)
	}
	if n, err := r.store.Tidy(t.Context(), time.Now().Add(time.Minute)); n != 3 || err != nil || r.contents() != 1 {
		t.Errorf("%d removed, %d left, %v", n, r.contents(), err)
	}
	if got, err := r.client.GetBytes(t.Context(), "kept"); err != nil || string(got) != "two" {
		t.Errorf("%q, %v", got, err)
	}
	r.store.Discard(t.Context(), old.NUID) // gone already
}

// Follow begins with all that exists, tells of every change, and of many at
// once when its reader is slow.
func TestFollow(t *testing.T) {
	r := newRig(t)
	r.put("first", "x")
	deleted, err := r.store.Delete(t.Context(), r.put("deleted", "x"))
	if err != nil {
		t.Fatal(err)
	}
	var (
		mu    sync.Mutex
		snaps []objects.Snapshot
	)
	gate := make(chan struct{})
	again := make(chan time.Duration, 10)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- r.store.Follow(ctx, lifecycle.Discard(), func(_ context.Context, s objects.Snapshot) (time.Duration, error) {
			mu.Lock()
			snaps = append(snaps, s)
			mu.Unlock()
			<-gate
			select {
			case d := <-again:
				return d, nil
			default:
				return 0, nil
			}
		})
	}()
	last := func() (objects.Snapshot, int) {
		mu.Lock()
		defer mu.Unlock()
		if len(snaps) == 0 {
			return objects.Snapshot{}, 0
		}
		return snaps[len(snaps)-1], len(snaps)
	}
	eventually(t, func() error {
		if s, n := last(); n != 1 || len(s.By) != 1 || s.Revision != deleted.Seq {
			return fmt.Errorf("first of %d: %+v", n, s)
		}
		return nil
	})
	const many = 50
	var newest objects.Info
	for n := range many {
		newest = r.put(fmt.Sprint("object-", n%10), fmt.Sprint(n))
	}
	close(gate)
	eventually(t, func() error {
		if s, n := last(); s.Revision != newest.Seq || len(s.By) != 11 || s.By[newest.Name].NUID != newest.NUID || n > many/2 {
			return fmt.Errorf("last of %d: revision %d of %d, %q", n, s.Revision, newest.Seq, slices.Sorted(maps.Keys(s.By)))
		}
		return nil
	})
	for range cap(again) { // more than one change can bring
		again <- time.Millisecond
	}
	r.put("next", "x")
	eventually(t, func() error {
		if n := len(again); n > 0 {
			return fmt.Errorf("not repeated %d times", n)
		}
		return nil
	})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Who follows a copy that is behind is told of no objects rather than of some.
func TestFollowOfACopyThatIsBehind(t *testing.T) {
	r := newRig(t)
	name, _ := stream.ObjectStream(stream.Containers)
	b := natstest.NewBehind(t, r.js, name)
	store, err := objects.Open(t.Context(), b, stream.Containers)
	if err != nil {
		t.Fatal(err)
	}
	done := errors.New("done")
	follow := func() (n int, err error) {
		err = store.Follow(t.Context(), lifecycle.Discard(), func(_ context.Context, s objects.Snapshot) (time.Duration, error) {
			n = len(s.By)
			return 0, done
		})
		return n, err
	}
	if n, err := follow(); n != 0 || !errors.Is(err, done) {
		t.Errorf("an empty store: %d objects, %v", n, err)
	}
	r.put("first", "x")
	last := r.put("second", "x")
	for at := range int(last.Seq) {
		if n, err := follow(); n != 0 || err == nil || errors.Is(err, done) {
			t.Errorf("with %d of %d messages: %d objects, %v", at, last.Seq, n, err)
		}
		b.Catchup(1)
	}
	if n, err := follow(); n != 2 || !errors.Is(err, done) {
		t.Errorf("with all messages: %d objects, %v", n, err)
	}
}

// A lost store is an error, and nothing stays behind.
func TestFollowEnds(t *testing.T) {
	r := newRig(t)
	r.put("a", "x")
	failed := errors.New("failed")
	fails := func(context.Context, objects.Snapshot) (time.Duration, error) { return 0, failed }
	follow := func() {
		t.Helper()
		if err := r.store.Follow(t.Context(), lifecycle.Discard(), fails); !errors.Is(err, failed) {
			t.Fatal(err)
		}
	}
	follow()
	before := runtime.NumGoroutine()
	for range 20 {
		follow()
	}
	eventually(t, func() error {
		if n := runtime.NumGoroutine(); n > before+5 {
			return fmt.Errorf("%d goroutines, %d before", n, before)
		}
		return nil
	})
	lost := make(chan error, 1)
	first := make(chan struct{}, 10)
	go func() {
		lost <- r.store.Follow(t.Context(), lifecycle.Discard(), func(context.Context, objects.Snapshot) (time.Duration, error) {
			first <- struct{}{}
			return 0, nil
		})
	}()
	<-first
	if err := r.js.DeleteObjectStore(t.Context(), stream.Containers); err != nil {
		t.Fatal(err)
	}
	if err := <-lost; err == nil {
		t.Error("a lost store is not noticed")
	}
}
