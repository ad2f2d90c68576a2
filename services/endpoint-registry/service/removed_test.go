package registry

import (
	"context"
	"encoding/json"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
)

const removedUUID = "03e31275-2277-d8e0-bb5f-480fac7ee4ef"

// runOn runs a replica with a connection.
func runOn(t *testing.T, b *bus.Bus) *Service {
	t.Helper()
	s, err := New(Config{Env: lifecycle.Env{Bus: b, Log: lifecycle.Discard(), Metrics: prometheus.NewRegistry(), DataDir: t.TempDir(), Replicas: 1}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	for end := time.Now().Add(20 * time.Second); s.Ready() != nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(s.Ready())
		}
	}
	return s
}

// A removal names the ends of the streams, is of a higher generation than the
// one before, whichever replica made that, and settles once, at its age, with
// the service's own rights.
func TestRemovalIsRecorded(t *testing.T) {
	own, all := natstest.Restricted(t, access.Registry)
	for _, name := range []string{stream.Events, stream.Alerts, stream.DeadLetters} {
		if err := stream.Ensure(t.Context(), all.JS, name, stream.Limits{}); err != nil {
			t.Fatal(err)
		}
	}
	s := runOn(t, own)
	publish := func(subj string) {
		t.Helper()
		if _, err := all.JS.Publish(t.Context(), subj, nil); err != nil {
			t.Fatal(err)
		}
	}
	publish(subject.Events(removedUUID))
	publish(subject.Events(removedUUID))
	publish(subject.Alerts(subject.High, removedUUID))
	remove := func() message.RemoveReply {
		t.Helper()
		reply, err := bus.Call[message.RemoveReply](t.Context(), all, message.RegistryRemove, message.RemoveRequest{UUID: removedUUID, Operator: "admin"})
		if err != nil {
			t.Fatal(err)
		}
		return reply
	}
	record := func() (r message.RemovalRecord) {
		t.Helper()
		kv, err := all.JS.KeyValue(t.Context(), stream.Removed)
		if err != nil {
			t.Fatal(err)
		}
		e, err := kv.Get(t.Context(), removedUUID)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(e.Value(), &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	reply := remove()
	r := record()
	if r.Generation != reply.Generation || r.Operator != "admin" || r.Settled != nil || len(r.Ends) != 3 ||
		r.Ends[stream.Events] != 2 || r.Ends[stream.Alerts] != 1 || r.Ends[stream.DeadLetters] != 0 {
		t.Errorf("recorded %+v", r)
	}
	if later := remove(); later.Generation <= reply.Generation || later.Revision <= reply.Revision {
		t.Errorf("removals %+v and %+v", reply, later)
	}
	publish(subject.Events(removedUUID))
	known, _ := s.removals.Get(removedUUID)
	for _, age := range []time.Duration{settleAfter - time.Second, settleAfter, 2 * settleAfter} {
		if err := s.settle(t.Context(), known, known.Record.Time.Add(age)); err != nil {
			t.Fatal(err)
		}
		r := record()
		if settled := r.Settled[stream.Events] == 3; settled != (age >= settleAfter) || r.Ends[stream.Events] != 2 {
			t.Errorf("at the age of %s: %+v", age, r)
		}
		known, _ = s.removals.Get(removedUUID)
	}
	if _, err := bus.Call[message.RemoveReply](t.Context(), all, message.RegistryRemove, message.RemoveRequest{UUID: "x.>"}); !fault.Is(err, fault.Invalid) {
		t.Errorf("what is no uuid: %v", err)
	}
	if err := own.NC.LastError(); err != nil {
		t.Errorf("the server refused something: %v", err)
	}
}

// Of removals at once each is recorded, with a generation of its own.
func TestRemovalsAtOnce(t *testing.T) {
	srv := natstest.Start(t)
	runOn(t, srv.Bus(t, access.Registry))
	runOn(t, srv.Bus(t, access.Registry))
	b := srv.Bus(t, "test")
	var group sync.WaitGroup
	replies := make([]message.RemoveReply, 8)
	for i := range replies {
		group.Go(func() {
			var err error
			if replies[i], err = bus.Call[message.RemoveReply](t.Context(), b, message.RegistryRemove, message.RemoveRequest{UUID: removedUUID}); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	seen := map[uint64]bool{}
	for _, r := range replies {
		seen[r.Generation] = true
	}
	if len(seen) != len(replies) {
		t.Errorf("%d generations of %d removals", len(seen), len(replies))
	}
}
