package main

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
)

const (
	latencyRate  = 2000 // events a second
	latencyBatch = 10
)

// sent is when the request that carries an event was begun.
type sent struct {
	mu    sync.Mutex
	begun map[string]time.Time
	times []time.Duration
}

// seen notes that an alert has reached the SIEM.
func (s *sent) seen(m *nats.Msg) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if at, ok := s.begun[m.Header.Get(message.HeaderHash)]; ok {
		s.times = append(s.times, now.Sub(at))
	}
}

// latency measures the time from a POST to its alerts at a SIEM.
func (b *bench) latency(ctx context.Context) error {
	seconds := b.size(30, 2)
	base, err := b.latencyBaseline(ctx, seconds)
	if err != nil {
		return err
	}
	m, err := b.start(ctx, "latency", "--tls", "off")
	if err != nil {
		return err
	}
	times, err := b.latencyRun(ctx, m, seconds)
	if err := errors.Join(err, m.stop(), os.RemoveAll(m.dir)); err != nil {
		return err
	}
	if len(times) == 0 {
		return errors.New("no alert reached the SIEM")
	}
	b.say("latency: %d alerts at %d events/s in batches of %d; slowest %s ms", len(times), latencyRate, latencyBatch, short(percentile(times, 1)))
	for _, q := range []struct {
		name       string
		part, goal float64
	}{{"p50", 0.5, 5}, {"p99", 0.99, 25}} {
		b.add(figure{section: "latency", name: "POST to the alert at the SIEM, " + q.name, unit: "ms", value: percentile(times, q.part), bound: atMost, goal: q.goal,
			baseline: percentile(base, q.part), against: "JetStream publish to subscriber"})
	}
	return nil
}

func (b *bench) latencyRun(ctx context.Context, m *manager, seconds int) ([]time.Duration, error) {
	endpoints, err := m.enrol(ctx, ingestEndpoints)
	if err != nil {
		return nil, err
	}
	events := cmp.Or(b.all, b.mix) // in that of one host alerts are rare
	bodies := events.bodies(events.plans(ingestEndpoints, seconds*latencyRate, latencyBatch))
	hashes, err := hashesOf(bodies)
	if err != nil {
		return nil, err
	}
	nc, err := m.siem()
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	s := &sent{begun: make(map[string]time.Time, seconds*latencyRate)}
	if _, err := nc.Subscribe("edr.alerts.>", s.seen); err != nil {
		return nil, err
	}
	if err := nc.Flush(); err != nil {
		return nil, err
	}
	begin := time.Now().Add(200 * time.Millisecond)
	interval := time.Second * latencyBatch * ingestEndpoints / latencyRate
	var wg sync.WaitGroup
	failures := make(chan error, len(endpoints))
	for i, e := range endpoints {
		a, err := m.dialAgent(ctx, e)
		if err != nil {
			return nil, err
		}
		defer a.close()
		wg.Go(func() {
			due := begin.Add(interval * time.Duration(i) / ingestEndpoints)
			for n, body := range bodies[i] {
				time.Sleep(time.Until(due))
				due = due.Add(interval)
				now := time.Now()
				s.mu.Lock()
				for _, h := range hashes[i][n] {
					s.begun[h] = now
				}
				s.mu.Unlock()
				if err := a.post(body); err != nil {
					failures <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(failures)
	if err := <-failures; err != nil {
		return nil, err
	}
	if err := m.await(ctx, "nightjar_rule_engine_events_total", float64(seconds*latencyRate/ingestEndpoints*ingestEndpoints)); err != nil {
		return nil, err
	}
	if err := nc.Drain(); err != nil {
		return nil, err
	}
	if err := until(ctx, "the SIEM's connection to end", func() error {
		if !nc.IsClosed() {
			return errors.New("open")
		}
		return nil
	}); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.times, nil
}

// hashesOf returns the hash of each event of each body.
func hashesOf(bodies [][]body) ([][][]string, error) {
	out := make([][][]string, len(bodies))
	for i, list := range bodies {
		for _, b := range list {
			text, err := gunzip(b.packed)
			if err != nil {
				return nil, err
			}
			var hashes []string
			for line := range strings.Lines(text) {
				h := event.HashOf([]byte(strings.TrimSuffix(line, "\n")))
				hashes = append(hashes, h.String())
			}
			out[i] = append(out[i], hashes)
		}
	}
	return out, nil
}

func gunzip(packed []byte) (string, error) {
	z, err := gzip.NewReader(strings.NewReader(string(packed)))
	if err != nil {
		return "", err
	}
	var text strings.Builder
	_, err = z.WriteTo(&text)
	return text.String(), err
}

// latencyBaseline publishes the same number of batches, synced, to a
// subscriber.
func (b *bench) latencyBaseline(ctx context.Context, seconds int) ([]time.Duration, error) {
	nc, stop, err := b.natsServer("latency-baseline")
	if err != nil {
		return nil, err
	}
	defer stop()
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	s, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "E", Subjects: []string{"e"}})
	if err != nil {
		return nil, err
	}
	c, err := s.CreateConsumer(ctx, jetstream.ConsumerConfig{AckPolicy: jetstream.AckNonePolicy})
	if err != nil {
		return nil, err
	}
	n := min(seconds, 5) * latencyRate / latencyBatch
	times := make(chan time.Duration, n)
	consume, err := c.Consume(func(m jetstream.Msg) {
		at, err := time.Parse(time.RFC3339Nano, m.Headers().Get("Sent"))
		if err == nil {
			times <- time.Since(at)
		}
	})
	if err != nil {
		return nil, err
	}
	defer consume.Stop()
	payload := []byte(hex.EncodeToString(make([]byte, 512)))
	tick := time.NewTicker(time.Second * latencyBatch / latencyRate)
	defer tick.Stop()
	out := make([]time.Duration, 0, n)
	for range n {
		<-tick.C
		m := nats.NewMsg("e")
		m.Data = payload
		m.Header.Set("Sent", time.Now().Format(time.RFC3339Nano))
		if _, err := js.PublishMsg(ctx, m); err != nil {
			return nil, fmt.Errorf("publish: %w", err)
		}
	}
	for range n {
		select {
		case t := <-times:
			out = append(out, t)
		case <-time.After(10 * time.Second):
			return nil, errors.New("a message did not reach the subscriber")
		}
	}
	return out, nil
}
