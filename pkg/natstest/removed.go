package natstest

import (
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
)

// Removed makes the bucket removed, as endpoint-registry does, for services that
// read it.
func Removed(t testing.TB, b *bus.Bus) jetstream.KeyValue {
	t.Helper()
	kv, err := stream.EnsureKV(t.Context(), b.JS, stream.Removed, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	return kv
}
