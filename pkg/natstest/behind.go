package natstest

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Behind is JetStream as a client meets it in a cluster where a server is still
// to get what a stream has: the leader answers what is asked of the stream, but
// ordered consumers stand at a copy that has only what Catchup has brought there.
type Behind struct {
	jetstream.JetStream
	// Made is how many consumers of the stream were made.
	Made atomic.Int64

	t    testing.TB
	name string
	next uint64
}

// behindCopy is the stream that stands for the copy.
const behindCopy = "BEHIND"

// NewBehind returns JetStream with an empty copy of a stream, of which no message
// may have been removed.
func NewBehind(t testing.TB, js jetstream.JetStream, name string) *Behind {
	t.Helper()
	_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: behindCopy, Subjects: []string{"behind.>"},
		SubjectTransform: &jetstream.SubjectTransformConfig{Source: "behind.>", Destination: ">"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return &Behind{JetStream: js, t: t, name: name}
}

// OrderedConsumer makes a consumer of the copy instead of the stream's.
func (b *Behind) OrderedConsumer(ctx context.Context, name string, cfg jetstream.OrderedConsumerConfig) (jetstream.Consumer, error) {
	if name != b.name {
		return b.JetStream.OrderedConsumer(ctx, name, cfg)
	}
	defer b.Made.Add(1)
	return b.JetStream.OrderedConsumer(ctx, behindCopy, cfg)
}

// Catchup brings the next n messages of the stream to the copy.
func (b *Behind) Catchup(n int) {
	b.t.Helper()
	s, err := b.Stream(b.t.Context(), b.name)
	if err != nil {
		b.t.Fatal(err)
	}
	for range n {
		b.next++
		m, err := s.GetMsg(b.t.Context(), b.next)
		if err != nil {
			b.t.Fatal(err)
		}
		to := nats.NewMsg("behind." + m.Subject)
		to.Data = m.Data
		for key, values := range m.Header {
			if !strings.HasPrefix(key, "Nats-Expected-") && key != "Nats-Rollup" { // orders to the stream
				to.Header[key] = values
			}
		}
		if _, err := b.PublishMsg(b.t.Context(), to); err != nil {
			b.t.Fatal(err)
		}
	}
}
