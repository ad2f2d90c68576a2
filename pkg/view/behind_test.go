package view_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// behind has consumers of stream S stand at another copy of it, as in a cluster
// at a server that is still to get what the others have.
type behind struct {
	jetstream.JetStream
	made atomic.Int64
}

func (b *behind) OrderedConsumer(ctx context.Context, _ string, cfg jetstream.OrderedConsumerConfig) (jetstream.Consumer, error) {
	defer b.made.Add(1)
	return b.JetStream.OrderedConsumer(ctx, "COPY", cfg)
}

// A view whose consumer stands at a copy that is behind is not ready, nor passes
// anything over, until what the stream has is folded.
func TestConsumerAtACopyThatIsBehind(t *testing.T) {
	for _, filters := range [][]string{nil, {"s.a"}} {
		for has := range 2 { // messages that the copy has at the start
			t.Run(fmt.Sprint(filters, has), func(t *testing.T) {
				c := setup(t)
				c.filters = filters
				if _, err := c.bus.JS.CreateStream(t.Context(), jetstream.StreamConfig{Name: "COPY", Subjects: []string{"copy.>"},
					SubjectTransform: &jetstream.SubjectTransformConfig{Source: "copy.>", Destination: "s.>"}}); err != nil {
					t.Fatal(err)
				}
				publish(t, c.bus, "s.a", 3)
				publish(t, c.bus, "s.b", 1)
				publish(t, c.bus, "copy.a", has)
				b := &behind{JetStream: c.bus.JS}
				c.bus.JS = b
				c.open()
				defer c.stop()
				until(t, "looked again", func() error {
					if c.Ready() {
						t.Fatalf("ready at sequence %d of 4", c.Position())
					}
					if b.made.Load() < 4 {
						return errors.New("not yet")
					}
					return nil
				})
				if pos := c.Position(); pos != uint64(has) {
					t.Errorf("position %d, want %d", pos, has)
				}
				publish(t, c.bus, "copy.a", 3-has)
				publish(t, c.bus, "copy.b", 1)
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				if err := c.WaitReady(ctx); err != nil {
					t.Fatal(err)
				}
				if n := c.count("s.a"); n != 3 {
					t.Errorf("%d messages, want 3", n)
				}
			})
		}
	}
}
