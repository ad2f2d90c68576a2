package registry_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
	registry "github.com/nightjar-edr/nightjar/services/endpoint-registry/service"
)

func importing(t *testing.T, srv *natstest.Server, dir string, list ...message.EndpointRecord) registry.Config {
	t.Helper()
	return registry.Config{Import: list, Env: lifecycle.Env{
		Bus: srv.Bus(t, access.Registry), Log: lifecycle.Discard(), Metrics: prometheus.NewRegistry(), DataDir: dir, Replicas: 1,
	}}
}

// What is configured is there before the first answer, in its order, and what
// happens to it afterwards outlives every start, even with an empty store.
func TestTakeOver(t *testing.T) {
	srv := natstest.Start(t)
	dir := t.TempDir()
	list := []message.EndpointRecord{
		{UUID: "ffffffff-0000-0000-0000-000000000001", Key: "one"},
		{UUID: "00000000-0000-0000-0000-000000000002", Key: "two"},
		{UUID: "88888888-0000-0000-0000-000000000003", Key: "three"},
		{UUID: "00000000-0000-0000-0000-000000000002", Key: "two"},
	}
	r := startWith(t, importing(t, srv, dir, list...))
	c := newClient(t, srv)
	if got, want := uuids(c.all()), []string{list[0].UUID, list[1].UUID, list[2].UUID}; !slices.Equal(got, want) {
		t.Fatalf("endpoints are %v, want %v", got, want)
	}
	must[message.EndpointReply](c, message.RegistryBind, message.EndpointRequest{UUID: list[0].UUID, Hostname: "host"})
	must[message.EndpointReply](c, message.RegistryDelete, message.EndpointRequest{UUID: list[1].UUID})
	want, end := c.all(), lastSeq(t, c.b)
	if len(want) != 2 || want[0].Key != "one" || want[0].Hostname != "host" {
		t.Fatalf("endpoints are %+v", want)
	}
	for _, lost := range []bool{false, true} {
		r.stop()
		if lost {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}
		r = startWith(t, importing(t, srv, dir, list...))
		if got := c.all(); !slices.Equal(got, want) {
			t.Errorf("store lost %t: endpoints are %+v, want %+v", lost, got, want)
		}
		if got := lastSeq(t, c.b); got != end {
			t.Errorf("store lost %t: %d records were written", lost, got-end)
		}
	}
	// The list may grow.
	r.stop()
	more := message.EndpointRecord{UUID: "11111111-0000-0000-0000-000000000004", Key: "four"}
	startWith(t, importing(t, srv, dir, append(list, more)...))
	if got, want := uuids(c.all()), []string{list[0].UUID, list[2].UUID, more.UUID}; !slices.Equal(got, want) {
		t.Errorf("endpoints are %v, want %v", got, want)
	}
}

func TestTakeOverRefused(t *testing.T) {
	srv := natstest.Start(t)
	known := message.EndpointRecord{UUID: "ffffffff-0000-0000-0000-000000000001", Key: "one"}
	fresh := message.EndpointRecord{UUID: "ffffffff-0000-0000-0000-000000000002", Key: "two"}
	startWith(t, importing(t, srv, t.TempDir(), known))
	c := newClient(t, srv)
	end := lastSeq(t, c.b)

	t.Run("exists with another key", func(t *testing.T) {
		other := known
		other.Key = "another"
		s, err := registry.New(importing(t, srv, t.TempDir(), fresh, other))
		if err != nil {
			t.Fatal(err)
		}
		err = s.Run(t.Context())
		if !errors.Is(err, lifecycle.ErrUsage) || !strings.Contains(err.Error(), known.UUID) {
			t.Errorf("Run: %v", err)
		}
	})
	for name, r := range map[string]message.EndpointRecord{"uuid": {UUID: "x", Key: "k"}, "key": {UUID: fresh.UUID}, "two keys": {UUID: known.UUID, Key: "k"}} {
		t.Run(name, func(t *testing.T) {
			if _, err := registry.New(importing(t, srv, t.TempDir(), known, r)); !errors.Is(err, lifecycle.ErrUsage) {
				t.Errorf("New: %v", err)
			}
		})
	}
	if got := lastSeq(t, c.b); got != end {
		t.Errorf("%d records were written", got-end)
	}
}

// Two replicas that start together with the same list add each endpoint once,
// in the order of the list.
func TestTakeOverBySeveral(t *testing.T) {
	srv := natstest.Start(t)
	var list []message.EndpointRecord
	var order []string
	for _, c := range "fedcba9876543210" {
		list = append(list, message.EndpointRecord{UUID: strings.Repeat(string(c), 8) + "-0000-0000-0000-000000000001", Key: "k"})
		order = append(order, list[len(list)-1].UUID)
	}
	first := launchWith(t, importing(t, srv, t.TempDir(), list...))
	second := launchWith(t, importing(t, srv, t.TempDir(), list...))
	first.await(t)
	second.await(t)
	c := newClient(t, srv)
	if got := uuids(c.all()); !slices.Equal(got, order) {
		t.Errorf("endpoints are %v, want %v", got, order)
	}
	if got := lastSeq(t, c.b); got != uint64(len(list)) {
		t.Errorf("%d records were written for %d endpoints", got, len(list))
	}
}
