package streamwatch

import (
	"context"
	"fmt"
	"maps"
	"math"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
)

// values returns all values by name and stream.
func values(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			found[f.GetName()+"/"+m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
		}
	}
	return found
}

// run watches until the test ends what the context of the service may see.
func run(t *testing.T, js jetstream.JetStream, streams ...string) *prometheus.Registry {
	t.Helper()
	reg := prometheus.NewRegistry()
	w := New(reg, "service", js, lifecycle.Discard(), streams...)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); w.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return reg
}

func eventually(t *testing.T, check func() error) {
	t.Helper()
	err := check()
	for end := time.Now().Add(20 * time.Second); err != nil && time.Now().Before(end); err = check() {
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A stream's size, messages and limit are told; that of a stream without one is
// infinite, and of one that cannot be seen nothing is told.
func TestStreams(t *testing.T) {
	b := natstest.Start(t).Bus(t, "test")
	for _, cfg := range []jetstream.StreamConfig{{Name: "LIMITED", Subjects: []string{"l"}, MaxBytes: 1 << 20}, {Name: "FREE", Subjects: []string{"f"}}} {
		if _, err := b.JS.CreateStream(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		if _, err := b.JS.Publish(t.Context(), "l", make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	s, err := b.JS.Stream(t.Context(), "LIMITED")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]float64{
		"nightjar_service_stream_bytes/LIMITED": float64(s.CachedInfo().State.Bytes), "nightjar_service_stream_limit_bytes/LIMITED": 1 << 20,
		"nightjar_service_stream_messages/LIMITED": 3, "nightjar_service_stream_bytes/FREE": 0, "nightjar_service_stream_messages/FREE": 0, "nightjar_service_stream_limit_bytes/FREE": math.Inf(1),
	}
	if want["nightjar_service_stream_bytes/LIMITED"] < 3000 {
		t.Fatalf("the stream has %v bytes", want)
	}
	reg := run(t, b.JS, "LIMITED", "FREE", "MISSING")
	eventually(t, func() error {
		if got := values(t, reg); !maps.Equal(got, want) {
			return fmt.Errorf("got %v, want %v", got, want)
		}
		return nil
	})
}

// Of a stream that is gone nothing is told any more, instead of what it was.
func TestStreamGone(t *testing.T) {
	b := natstest.Start(t).Bus(t, "test")
	if _, err := b.JS.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, MaxBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	w := New(reg, "service", b.JS, lifecycle.Discard(), "S")
	w.look(t.Context(), "S")
	if got := values(t, reg); len(got) != 3 {
		t.Fatalf("got %v", got)
	}
	if err := b.JS.DeleteStream(t.Context(), "S"); err != nil {
		t.Fatal(err)
	}
	w.look(t.Context(), "S")
	if got := values(t, reg); len(got) != 0 {
		t.Errorf("got %v", got)
	}
}
