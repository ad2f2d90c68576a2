package bus_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
	"github.com/nightjar-edr/nightjar/pkg/tracing"
	"github.com/nightjar-edr/nightjar/pkg/tracing/tracetest"
)

const subject = "edr.test.ask"

// pair returns a service that answers on subject, and the bus of a client.
func pair(t *testing.T, parallel int, h bus.Handler) (*bus.Service, *bus.Bus) {
	t.Helper()
	srv := natstest.Start(t)
	s, err := bus.Serve(t.Context(), srv.Bus(t, "server"), "test", "1.0.0", parallel, 30*time.Second, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	if err := s.Handle(subject, h); err != nil {
		t.Fatal(err)
	}
	return s, srv.Bus(t, "client")
}

type question struct{ A, B int }

func TestCall(t *testing.T) {
	_, client := pair(t, 4, bus.JSON(func(_ context.Context, q question) (map[string]int, error) {
		return map[string]int{"sum": q.A + q.B}, nil
	}))
	got, err := bus.Call[map[string]int](t.Context(), client, subject, question{A: 3, B: 4})
	if err != nil || got["sum"] != 7 {
		t.Errorf("3 + 4 is %v, %v", got, err)
	}
	t.Run("no request is the zero request", func(t *testing.T) {
		m, err := client.Request(t.Context(), subject, nil)
		if err != nil || string(m.Data) != `{"sum":0}` {
			t.Errorf("%s, %v", m.Data, err)
		}
	})
	t.Run("malformed request", func(t *testing.T) {
		for _, data := range []string{"{", `{"A":"three"}`, "[]", "\x00\xff"} {
			if _, err := client.Request(t.Context(), subject, []byte(data)); !fault.Is(err, fault.Invalid) || !strings.HasPrefix(err.Error(), "malformed request: ") {
				t.Errorf("%q: %v", data, err)
			}
		}
	})
	t.Run("another answer than expected", func(t *testing.T) {
		if _, err := bus.Call[[]string](t.Context(), client, subject, question{}); !fault.Is(err, fault.Internal) || !strings.Contains(err.Error(), subject) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("request that is no JSON", func(t *testing.T) {
		if _, err := bus.Call[question](t.Context(), client, subject, func() {}); err == nil || !strings.Contains(err.Error(), "encode request") {
			t.Errorf("got %v", err)
		}
	})
}

func TestAnswerThatIsNoJSON(t *testing.T) {
	_, client := pair(t, 1, bus.JSON(func(context.Context, question) (func(), error) { return nil, nil }))
	if _, err := client.Request(t.Context(), subject, nil); !fault.Is(err, fault.Internal) || !strings.Contains(err.Error(), "encode answer") {
		t.Errorf("got %v", err)
	}
}

// What a handler returns is what the caller gets.
func TestReply(t *testing.T) {
	for _, tc := range []struct {
		name  string
		reply *bus.Reply
	}{
		{"data and headers", &bus.Reply{Data: []byte("body"), Header: nats.Header{"Nightjar-Version": {"7"}}}},
		{"empty", &bus.Reply{}},
		{"nothing", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, client := pair(t, 1, func(context.Context, []byte) (*bus.Reply, error) { return tc.reply, nil })
			m, err := client.Request(t.Context(), subject, nil)
			if err != nil {
				t.Fatal(err)
			}
			want := tc.reply
			if want == nil {
				want = &bus.Reply{}
			}
			if string(m.Data) != string(want.Data) || m.Header.Get("Nightjar-Version") != want.Header.Get("Nightjar-Version") {
				t.Errorf("data %q, header %v", m.Data, m.Header)
			}
		})
	}
}

// Errors cross the border with their kind and message, and only they.
func TestFaults(t *testing.T) {
	for _, tc := range []struct {
		name    string
		err     error
		kind    fault.Kind
		message string
	}{
		{"invalid", fault.New(fault.Invalid, "uuid: want 8-4-4-4-12"), fault.Invalid, "uuid: want 8-4-4-4-12"},
		{"not found", fault.New(fault.NotFound, "no rule \"Größe\""), fault.NotFound, "no rule \"Größe\""},
		{"conflict", fault.New(fault.Conflict, "taken"), fault.Conflict, "taken"},
		{"unavailable", fault.New(fault.Unavailable, "later"), fault.Unavailable, "later"},
		{"too large", fault.New(fault.TooLarge, "4 MiB at most"), fault.TooLarge, "4 MiB at most"},
		{"internal", fault.New(fault.Internal, "broken"), fault.Internal, "broken"},
		{"wrapped", fmt.Errorf("bind: %w", fault.New(fault.Conflict, "taken")), fault.Conflict, "taken"},
		{"no fault", errors.New("disk is gone"), fault.Internal, "disk is gone"},
		{"no message", fault.New(fault.Conflict, ""), fault.Conflict, ""},
		{"no kind", &fault.Error{Message: "of no kind"}, fault.Internal, "of no kind"},
		{"lines", fault.New(fault.Invalid, "line 1: bad\r\nNats-Forged: yes"), fault.Invalid, "line 1: bad  Nats-Forged: yes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, client := pair(t, 1, func(context.Context, []byte) (*bus.Reply, error) { return &bus.Reply{Data: []byte("half")}, tc.err })
			m, err := client.Request(t.Context(), subject, nil)
			var f *fault.Error
			if !errors.As(err, &f) || f.Kind != tc.kind || f.Message != tc.message || m != nil {
				t.Errorf("got %v, %#v, want %s %q", m, err, tc.kind, tc.message)
			}
		})
	}
}

func TestPanicIsAnErrorOfOneRequest(t *testing.T) {
	_, client := pair(t, 1, func(_ context.Context, data []byte) (*bus.Reply, error) {
		if string(data) == "bomb" {
			panic("secret of the handler")
		}
		return &bus.Reply{Data: data}, nil
	})
	for range 3 { // more than may be worked on at once
		if _, err := client.Request(t.Context(), subject, []byte("bomb")); !fault.Is(err, fault.Internal) || err.Error() != "internal error" {
			t.Fatalf("got %v", err)
		}
	}
	if m, err := client.Request(t.Context(), subject, []byte("fine")); err != nil || string(m.Data) != "fine" {
		t.Errorf("the next request: %v", err)
	}
}

func TestNobodyAnswers(t *testing.T) {
	client := natstest.Start(t).Bus(t, "client")
	if _, err := client.Request(t.Context(), "edr.nobody", nil); !fault.Is(err, fault.Unavailable) || !errors.Is(err, nats.ErrNoResponders) ||
		!strings.Contains(err.Error(), "edr.nobody") {
		t.Errorf("no responder: %v", err)
	}
	if _, err := bus.Call[int](t.Context(), client, "edr.nobody", 1); !fault.Is(err, fault.Unavailable) {
		t.Errorf("no responder: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	cancel()
	if _, err := client.Request(ctx, "edr.nobody", nil); !fault.Is(err, fault.Unavailable) {
		t.Errorf("context at its end: %v", err)
	}
	client.Close()
	if _, err := client.Request(t.Context(), "edr.nobody", nil); !fault.Is(err, fault.Unavailable) {
		t.Errorf("closed connection: %v", err)
	}
}

// As many requests as allowed are in hand together, and no more.
func TestParallel(t *testing.T) {
	const parallel, requests = 4, 16
	var (
		mu          sync.Mutex
		inHand, top int
		together    = make(chan struct{})
	)
	_, client := pair(t, parallel, func(ctx context.Context, data []byte) (*bus.Reply, error) {
		mu.Lock()
		inHand++
		if top = max(top, inHand); inHand == parallel && top == parallel {
			select {
			case <-together:
			default:
				close(together)
			}
		}
		mu.Unlock()
		defer func() { mu.Lock(); inHand--; mu.Unlock() }()
		select {
		case <-together:
			return &bus.Reply{Data: data}, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
	var wg sync.WaitGroup
	for i := range requests {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			got, err := bus.Call[int](ctx, client, subject, i)
			if err != nil || got != i {
				t.Errorf("request %d: %d, %v", i, got, err)
			}
		})
	}
	wg.Wait()
	if top != parallel {
		t.Errorf("%d requests in hand at once, want %d", top, parallel)
	}
}

// Stop lets the work in hand end, whose answer still arrives, and nobody
// answers afterwards.
func TestStop(t *testing.T) {
	begun, release := make(chan struct{}), make(chan struct{})
	s, client := pair(t, 2, func(_ context.Context, data []byte) (*bus.Reply, error) {
		if string(data) == "in hand" {
			close(begun)
			<-release
		}
		return &bus.Reply{Data: data}, nil
	})
	type answer struct {
		m   *nats.Msg
		err error
	}
	answers := make(chan answer, 1)
	go func() {
		m, err := client.Request(t.Context(), subject, []byte("in hand"))
		answers <- answer{m, err}
	}()
	<-begun
	stopped := make(chan struct{})
	go func() { s.Stop(); close(stopped) }()
	// Requests are refused from the moment that Stop has got going.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for refused := false; !refused; {
		_, err := client.Request(ctx, subject, []byte("late"))
		if ctx.Err() != nil {
			t.Fatal("requests are still answered")
		}
		refused = fault.Is(err, fault.Unavailable)
	}
	select {
	case <-stopped:
		t.Fatal("stopped with work in hand")
	default:
	}
	close(release)
	<-stopped
	if a := <-answers; a.err != nil || string(a.m.Data) != "in hand" {
		t.Errorf("the request in hand: %v", a.err)
	}
	if _, err := client.Request(t.Context(), subject, nil); !fault.Is(err, fault.Unavailable) {
		t.Errorf("after Stop: %v", err)
	}
	s.Stop() // harmless
}

// The handler's context ends with the service's, and after the time that a
// request may take.
func TestHandlerContext(t *testing.T) {
	srv := natstest.Start(t)
	type observed struct {
		subject string
		err     error
	}
	seen := make(chan observed, 1)
	ctx, cancel := context.WithCancel(t.Context())
	s, err := bus.Serve(ctx, srv.Bus(t, "server"), "test", "1.0.0", 1, time.Hour, func(subject string, _ time.Duration, err error) {
		seen <- observed{subject, err}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	if err := s.Handle("edr.wait.*", func(ctx context.Context, _ []byte) (*bus.Reply, error) {
		if d, ok := ctx.Deadline(); !ok || time.Until(d) > time.Hour {
			return nil, errors.New("no deadline")
		}
		cancel()
		<-ctx.Done()
		return nil, fault.New(fault.Unavailable, "stopping")
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := srv.Bus(t, "client").Request(t.Context(), "edr.wait.7", nil); !fault.Is(err, fault.Unavailable) || err.Error() != "stopping" {
		t.Errorf("got %v", err)
	}
	if o := <-seen; o.subject != "edr.wait.7" || !fault.Is(o.err, fault.Unavailable) {
		t.Errorf("observed %v", o)
	}
}

func TestServeErrors(t *testing.T) {
	b := natstest.Start(t).Bus(t, "server")
	if _, err := bus.Serve(t.Context(), b, "not a name", "1.0.0", 1, time.Minute, nil); err == nil || !strings.Contains(err.Error(), "not a name") {
		t.Errorf("bad name: %v", err)
	}
	s, err := bus.Serve(t.Context(), b, "test", "1.0.0", 1, time.Minute, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	if err := s.Handle("not a subject", nil); err == nil || !strings.Contains(err.Error(), "not a subject") {
		t.Errorf("bad subject: %v", err)
	}
}

// A service that is announced while NATS is away is found when it is back.
func TestAnnouncedWhileNATSIsAway(t *testing.T) {
	listen := func(port int) *server.Server {
		t.Helper()
		srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: port, NoSigs: true, NoLog: true})
		if err != nil {
			t.Fatal(err)
		}
		srv.Start()
		t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
		if !srv.ReadyForConnections(10 * time.Second) {
			t.Fatal("nats server is not ready")
		}
		return srv
	}
	first := listen(server.RANDOM_PORT)
	addr := first.Addr().(*net.TCPAddr)
	connect := func(name string) *bus.Bus {
		t.Helper()
		b, err := bus.Connect(bus.Options{Service: name, URL: "nats://" + addr.String(), Log: lifecycle.Discard()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(b.Close)
		return b
	}
	b := connect("server")
	s, err := bus.Serve(t.Context(), b, "test", "1.0.0", 1, time.Minute, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	first.Shutdown()
	first.WaitForShutdown()
	if err := s.Handle(subject, func(context.Context, []byte) (*bus.Reply, error) { return &bus.Reply{Data: []byte("found")}, nil }); err != nil {
		t.Fatal(err)
	}
	listen(addr.Port)
	client := connect("client")
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		m, err := client.Request(t.Context(), subject, nil)
		if err == nil && string(m.Data) == "found" {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	b.Close()
	if err := s.Handle(subject+".late", nil); err == nil {
		t.Error("announced on a connection that is closed")
	}
}

func TestConnectErrors(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	const nowhere = "nats://127.0.0.1:1"
	for _, tc := range []struct {
		name    string
		o       bus.Options
		options bool // the error is one of options
		want    string
	}{
		{"nobody there", bus.Options{URL: nowhere}, false, nowhere},
		{"no seed file", bus.Options{URL: nowhere, SeedFile: filepath.Join(dir, "missing.nk")}, true, "missing.nk"},
		{"no seed in the file", bus.Options{URL: nowhere, SeedFile: write("bad.nk", "not a seed\n")}, true, "bad.nk"},
		{"bad seed", bus.Options{URL: nowhere, Seed: []byte("not a seed")}, true, "nkey seed"},
		{"no CA file", bus.Options{URL: nowhere, CAFile: filepath.Join(dir, "missing.pem")}, true, "missing.pem"},
		{"no CA in the file", bus.Options{URL: nowhere, CAFile: write("bad.pem", "no certificate\n")}, true, "bad.pem"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.o.Service, tc.o.Log = "test", lifecycle.Discard()
			b, err := bus.Connect(tc.o)
			if err == nil {
				b.Close()
				t.Fatal("connected")
			}
			if errors.Is(err, bus.ErrOptions) != tc.options || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestReady(t *testing.T) {
	srv := natstest.Start(t)
	b := srv.Bus(t, "test")
	if err := b.Ready(); err != nil {
		t.Errorf("connected: %v", err)
	}
	// What was handed to the connection before Close arrives.
	reader := srv.Bus(t, "reader").NC
	sub, err := reader.SubscribeSync("edr.test.last")
	if err != nil {
		t.Fatal(err)
	}
	if err := reader.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := b.NC.Publish("edr.test.last", []byte("last words")); err != nil {
		t.Fatal(err)
	}
	b.Close()
	if m, err := sub.NextMsg(10 * time.Second); err != nil || string(m.Data) != "last words" {
		t.Errorf("last message: %v", err)
	}
	if err := b.Ready(); err == nil {
		t.Error("ready when closed")
	}
	b.Close() // harmless
}

// A request that is part of a trace carries it to the other side, and back to
// whom that one asks.
func TestTrace(t *testing.T) {
	c := tracetest.Start(t)
	e, err := tracing.Open(tracing.Options{Endpoint: c.URL, Ratio: 1, Log: lifecycle.Discard()})
	if err != nil {
		t.Fatal(err)
	}
	srv := natstest.Start(t)
	connect := func(name string) *bus.Bus {
		t.Helper()
		b, err := bus.Connect(bus.Options{Service: name, InProcess: srv.NATS, Trace: e.Tracer(name), Log: lifecycle.Discard()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(b.Close)
		return b
	}
	server, client := connect("server"), connect("client")
	s, err := bus.Serve(t.Context(), server, "test", "1.0.0", 1, time.Minute, nil)
	if err != nil {
		t.Fatal(err)
	}
	parents := make(chan string, 2)
	if err := s.Handle(subject, func(ctx context.Context, _ []byte) (*bus.Reply, error) {
		parents <- tracing.Parent(ctx)
		return nil, fault.New(fault.Conflict, "no")
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Request(t.Context(), subject, nil); !fault.Is(err, fault.Conflict) {
		t.Errorf("outside of a trace: %v", err)
	}
	if parent := <-parents; parent != "" {
		t.Errorf("outside of a trace the other side sees %s", parent)
	}
	ctx, span := client.Trace.Start(t.Context(), "root", tracing.Internal)
	if _, err := client.Request(ctx, subject, []byte("data")); !fault.Is(err, fault.Conflict) {
		t.Errorf("within a trace: %v", err)
	}
	span.End(nil)
	if parent := <-parents; parent == "" {
		t.Error("the other side sees no trace")
	}
	s.Stop()
	e.Close()
	spans := map[string]tracetest.Span{}
	for _, s := range c.Spans() {
		spans[s.Name] = s
	}
	asked, answered := spans["ask "+subject], spans["answer "+subject]
	if len(c.Spans()) != 3 || asked.Parent != spans["root"].ID || answered.Parent != asked.ID || answered.Service != "server" || !asked.Failed || !answered.Failed {
		t.Errorf("spans %+v", c.Spans())
	}
}
