package gateway

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
)

// BenchmarkReceive measures what stands between a body in memory and its
// acknowledgement by the stream.
func BenchmarkReceive(b *testing.B) {
	for _, bc := range []struct {
		name string
		size int
	}{{"300B", 300}, {"64KiB", 64 << 10}, {"140KiB", 140 << 10}, {"8MiB", 8 << 20}} {
		b.Run(bc.name, func(b *testing.B) {
			conn := natstest.Start(b).Bus(b, access.Gateway)
			if err := stream.Ensure(b.Context(), conn.JS, stream.Events, stream.Limits{}); err != nil {
				b.Fatal(err)
			}
			cfg := Config{Env: lifecycle.Env{Bus: conn, Log: lifecycle.Discard(), Metrics: prometheus.NewRegistry()}}
			cfg.setDefaults()
			pub, err := newPublisher(&cfg, func(string) uint64 { return 0 })
			if err != nil {
				b.Fatal(err)
			}
			in := newIngester(pub, &cfg, func(string) uint64 { return 0 }, newMetrics(cfg.Metrics, nil, func() int { return 0 }))
			gen := &events300{left: bc.size, r: rand.New(rand.NewPCG(1, 2))}
			body, err := io.ReadAll(gen)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				// Another endpoint each time, or the stream would recognise
				// the batches and store none.
				n++
				from := sender{uuid: fmt.Sprintf("00000000-0000-0000-0000-%012d", n)}
				if err := in.receive(context.Background(), from, bytes.NewReader(body), false); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(gen.n)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}
