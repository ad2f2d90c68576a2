package dispatch

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
)

const patience = 20 * time.Second

// clock is a clock that stands still until it is moved.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Now()} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// running is a service that runs, with its registry.
type running struct {
	*Service
	registry *prometheus.Registry
	stop     func()
}

type setup struct {
	dir     string
	history int
	// maxQueued is how many commands may wait; 0 for the default.
	maxQueued int
	clock     *clock
	// judged is the clock by which commands end; nil for clock.
	judged *clock
	// log is nil for none.
	log *slog.Logger
}

// start runs a service and waits until it is ready. It is stopped with the
// test, or by stop.
func start(t *testing.T, srv *natstest.Server, o setup) *running {
	t.Helper()
	if o.dir == "" {
		o.dir = t.TempDir()
	}
	if o.clock == nil {
		o.clock = newClock()
	}
	if o.judged == nil {
		o.judged = o.clock
	}
	if o.log == nil {
		o.log = lifecycle.Discard()
	}
	reg := prometheus.NewRegistry()
	b, err := bus.Connect(bus.Options{Service: access.Commands, InProcess: srv.NATS, Log: lifecycle.Discard()})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{
		Env:     lifecycle.Env{Bus: b, Log: o.log, Metrics: reg, DataDir: o.dir},
		History: o.history, MaxQueued: o.maxQueued, now: o.clock.Now, judged: o.judged.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	r := &running{Service: s, registry: reg, stop: sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		b.Close()
	})}
	t.Cleanup(r.stop)
	await(t, "service is ready", func() bool { return s.Ready() == nil })
	return r
}

// await waits until a condition holds.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	limit := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(limit) {
			t.Fatalf("not within %s: %s", patience, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// client asks the service as a gateway does.
type client struct {
	t testing.TB
	b *bus.Bus
}

func ask[A any](c client, subject string, q any) (A, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return bus.Call[A](ctx, c.b, subject, q)
}

func (c client) must(subject string, q any) message.CommandReply {
	c.t.Helper()
	r, err := ask[message.CommandReply](c, subject, q)
	if err != nil {
		c.t.Fatalf("%s: %v", subject, err)
	}
	return r
}

func (c client) queue(endpoint string, q message.CommandQueueRequest) *message.CommandRecord {
	c.t.Helper()
	q.Endpoint = endpoint
	return c.must(message.CommandsQueue, q).Command
}

func (c client) next(endpoint string) *message.CommandRecord {
	c.t.Helper()
	return c.must(message.CommandsNext, message.CommandRequest{Endpoint: endpoint}).Command
}

func (c client) newest(endpoint string) *message.CommandRecord {
	c.t.Helper()
	return c.must(message.CommandsGet, message.CommandRequest{Endpoint: endpoint}).Command
}

func (c client) get(endpoint, command string) *message.CommandRecord {
	c.t.Helper()
	return c.must(message.CommandsGet, message.CommandRequest{Endpoint: endpoint, UUID: command}).Command
}

func (c client) result(q message.CommandResultRequest) message.CommandOutcome {
	c.t.Helper()
	r, err := ask[message.CommandResultReply](c, message.CommandsResult, q)
	if err != nil {
		c.t.Fatalf("result: %v", err)
	}
	return r.Outcome
}

// list returns all commands of an endpoint, newest first, page by page.
func (c client) list(endpoint string, limit int) []message.CommandRecord {
	c.t.Helper()
	var all []message.CommandRecord
	q := message.CommandsListRequest{Endpoint: endpoint, Limit: limit}
	for {
		r, err := ask[message.CommandsListReply](c, message.CommandsList, q)
		if err != nil {
			c.t.Fatalf("list: %v", err)
		}
		all = append(all, r.Commands...)
		if r.Next == 0 {
			return all
		}
		q.Before = r.Next
	}
}

// metric returns the sum of the samples of a metric.
func (r *running) metric(t *testing.T, name string) float64 {
	t.Helper()
	families, err := r.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "nightjar_command_dispatch_"+name {
			sum := 0.0
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
			return sum
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}
