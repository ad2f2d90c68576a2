package dispatch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
)

// TestHandedOutOnce lets many agents and gateways ask two replicas in the same
// moment.
func TestHandedOutOnce(t *testing.T) {
	const commands, askers = 40, 8
	srv := natstest.Start(t)
	replicas := []*running{start(t, srv, setup{}), start(t, srv, setup{})}
	c := client{t: t, b: srv.Bus(t, access.Gateway)}
	endpoint := newUUID()
	want := map[string]bool{}
	for range commands {
		want[c.queue(endpoint, message.CommandQueueRequest{Name: "echo"}).UUID] = true
	}
	var mu sync.Mutex
	got := map[string]int{}
	var wg sync.WaitGroup
	for i := range askers {
		wg.Go(func() {
			s := replicas[i%len(replicas)]
			for {
				// Directly, so that both replicas are certain to be asked.
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				r, err := s.next(ctx, message.CommandRequest{Endpoint: endpoint})
				cancel()
				if err != nil {
					t.Errorf("next: %v", err)
					return
				}
				if r.Command == nil {
					return
				}
				mu.Lock()
				got[r.Command.UUID]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for id := range want {
		if got[id] != 1 {
			t.Errorf("command %s was handed out %d times", id, got[id])
		}
	}
	if len(got) != commands {
		t.Errorf("%d commands handed out, want %d", len(got), commands)
	}
	if a, b := replicas[0].metric(t, "delivered_commands_total"), replicas[1].metric(t, "delivered_commands_total"); a+b != commands {
		t.Errorf("delivered metrics are %v and %v, want %d together", a, b, commands)
	}
}

// TestOneResult lets two replicas take the same result in the same moment.
func TestOneResult(t *testing.T) {
	srv := natstest.Start(t)
	replicas := []*running{start(t, srv, setup{}), start(t, srv, setup{})}
	c := client{t: t, b: srv.Bus(t, access.Gateway)}
	endpoint := newUUID()
	for range 20 {
		id := c.queue(endpoint, message.CommandQueueRequest{}).UUID
		c.next(endpoint)
		outcomes := make([]message.CommandOutcome, len(replicas))
		var wg sync.WaitGroup
		for i, s := range replicas {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				defer cancel()
				r, err := s.result(ctx, message.CommandResultRequest{Endpoint: endpoint, UUID: id})
				if err != nil {
					t.Errorf("result: %v", err)
				}
				outcomes[i] = r.Outcome
			})
		}
		wg.Wait()
		if !(outcomes[0] == message.ResultAccepted && outcomes[1] == message.ResultRepeated) &&
			!(outcomes[1] == message.ResultAccepted && outcomes[0] == message.ResultRepeated) {
			t.Fatalf("outcomes are %v", outcomes)
		}
	}
}

// TestRestart stops the service in the middle of things and starts it on the
// same folder, and on an empty one.
func TestRestart(t *testing.T) {
	for _, rebuild := range []bool{false, true} {
		t.Run(map[bool]string{false: "same folder", true: "deleted folder"}[rebuild], func(t *testing.T) {
			srv := natstest.Start(t)
			clk := newClock()
			dir := t.TempDir()
			s := start(t, srv, setup{dir: dir, clock: clk})
			c := client{t: t, b: srv.Bus(t, access.Gateway)}
			endpoint := newUUID()
			var ids []string
			for range 5 {
				ids = append(ids, c.queue(endpoint, message.CommandQueueRequest{
					Actor: "admin", Name: "echo", Args: []string{"a b"}, Fetch: []string{"x"},
				}).UUID)
			}
			c.next(endpoint)
			c.next(endpoint)
			c.result(message.CommandResultRequest{Endpoint: endpoint, UUID: ids[0], Name: "/bin/echo", Error: "exit status 3",
				Stdout: &message.CommandBlob{Data: []byte(`{"a":1}`), Size: 7, JSON: true}, ExpectJSON: true})
			c.must(message.CommandsCancel, message.CommandRequest{Endpoint: endpoint, UUID: ids[3]})
			s.stop()
			if rebuild {
				if err := os.RemoveAll(dir); err != nil {
					t.Fatal(err)
				}
			}
			s = start(t, srv, setup{dir: dir, clock: clk})
			if q, n := s.metric(t, "queued_commands"), s.metric(t, "sent_commands"); q != 2 || n != 1 {
				t.Errorf("%v queued and %v sent commands, want 2 and 1", q, n)
			}
			done := c.get(endpoint, ids[0])
			if done.State != message.CommandCompleted || done.Name != "/bin/echo" || done.Error != "exit status 3" || done.Actor != "admin" ||
				done.Stdout == nil || string(done.Stdout.Data) != `{"a":1}` || !done.Stdout.JSON || !done.ExpectJSON {
				t.Errorf("completed command is %+v", done)
			}
			if got := c.next(endpoint); got == nil || got.UUID != ids[2] || len(got.Args) != 1 || got.Args[0] != "a b" || len(got.Fetch) != 1 {
				t.Errorf("next command is %+v, want %s", got, ids[2])
			}
			if got := c.next(endpoint); got == nil || got.UUID != ids[4] {
				t.Errorf("next command is %+v, want %s", got, ids[4])
			}
			if got := c.next(endpoint); got != nil {
				t.Errorf("next command is %+v, want none", got)
			}
			clk.advance(time.Hour)
			if err := s.expire(t.Context()); err != nil {
				t.Fatal(err)
			}
			var states []message.CommandState
			for _, r := range c.list(endpoint, 0) {
				states = append(states, r.State)
			}
			if want := []message.CommandState{"expired", "cancelled", "expired", "expired", "completed"}; !equal(states, want) {
				t.Errorf("states are %v, want %v", states, want)
			}
			if n := s.metric(t, "expired_commands_total"); n != 3 {
				t.Errorf("%v expired, want 3", n)
			}
		})
	}
}

func equal[T comparable](a, b []T) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// TestJumpOfTheClock holds that a clock that is suddenly a year ahead ends no
// command that was handed out: its result counts.
func TestJumpOfTheClock(t *testing.T) {
	srv := natstest.Start(t)
	clk, judged := newClock(), newClock()
	s := start(t, srv, setup{clock: clk, judged: judged})
	c := client{t: t, b: srv.Bus(t, access.Gateway)}
	endpoint := newUUID()
	ids := []string{c.queue(endpoint, message.CommandQueueRequest{}).UUID, c.queue(endpoint, message.CommandQueueRequest{}).UUID}
	for _, id := range ids {
		if r := c.next(endpoint); r == nil || r.UUID != id {
			t.Fatalf("next is %+v", r)
		}
	}
	clk.advance(365 * 24 * time.Hour)
	if err := s.expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := c.result(message.CommandResultRequest{Endpoint: endpoint, UUID: ids[0]}); got != message.ResultAccepted {
		t.Errorf("the result was %s", got)
	}
	judged.advance(time.Hour)
	if err := s.expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := c.get(endpoint, ids[1]); r.State != message.CommandExpired {
		t.Errorf("after its time the command is %s", r.State)
	}
}

// TestExpiry has the times of a command with and without a timeout.
func TestExpiry(t *testing.T) {
	srv := natstest.Start(t)
	clk := newClock()
	s := start(t, srv, setup{clock: clk})
	c := client{t: t, b: srv.Bus(t, access.Gateway)}
	for _, tc := range []struct {
		name    string
		timeout time.Duration
		limit   time.Duration
		text    string
	}{
		{"none", 0, 10 * time.Minute, "not answered within 10m0s"},
		{"ten seconds", 10 * time.Second, 70 * time.Second, "not answered within 1m10s"},
		{"an hour", time.Hour, 61 * time.Minute, "not answered within 1h1m0s"},
		{"centuries", 1<<63 - 1 - time.Minute, 0, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			endpoint := newUUID()
			id := c.queue(endpoint, message.CommandQueueRequest{Timeout: tc.timeout}).UUID
			clk.advance(24 * time.Hour)
			if err := s.expire(t.Context()); err != nil {
				t.Fatal(err)
			}
			if r := c.next(endpoint); r == nil || r.UUID != id {
				t.Fatalf("a waiting command does not expire; next is %+v", r)
			}
			if tc.limit == 0 {
				clk.advance(365 * 24 * time.Hour)
			} else {
				clk.advance(tc.limit)
			}
			if err := s.expire(t.Context()); err != nil {
				t.Fatal(err)
			}
			if r := c.get(endpoint, id); r.State != message.CommandSent || r.Error != "" {
				t.Fatalf("within its time the command is %s, error %q", r.State, r.Error)
			}
			if tc.limit == 0 {
				return
			}
			clk.advance(time.Millisecond)
			if err := s.expire(t.Context()); err != nil {
				t.Fatal(err)
			}
			r := c.get(endpoint, id)
			if r.State != message.CommandExpired || !strings.Contains(r.Error, "delivered at ") || !strings.Contains(r.Error, tc.text) {
				t.Fatalf("after its time the command is %s, error %q", r.State, r.Error)
			}
			if got := c.result(message.CommandResultRequest{Endpoint: endpoint, UUID: id}); got != message.ResultLate {
				t.Fatalf("late result was %s", got)
			}
		})
	}
}

// TestHistory has the oldest ended commands deleted with their objects, and
// none that wait.
func TestHistory(t *testing.T) {
	srv := natstest.Start(t)
	dir := t.TempDir()
	s := start(t, srv, setup{history: 3, dir: dir})
	c := client{t: t, b: srv.Bus(t, access.Gateway)}
	endpoint := newUUID()
	var ids []string
	for i := range 6 {
		id := c.queue(endpoint, message.CommandQueueRequest{}).UUID
		ids = append(ids, id)
		if i == 5 {
			break
		}
		c.next(endpoint)
		object := put(t, s, endpoint+"/"+id, "output")
		if got := c.result(message.CommandResultRequest{Endpoint: endpoint, UUID: id, Stdout: &message.CommandBlob{Object: object, Size: 6}}); got != message.ResultAccepted {
			t.Fatalf("result was %s", got)
		}
	}
	check := func() {
		t.Helper()
		var got []string
		for _, r := range c.list(endpoint, 2) {
			got = append(got, r.UUID)
		}
		if want := []string{ids[5], ids[4], ids[3], ids[2]}; !equal(got, want) {
			t.Fatalf("commands are %v, want %v", got, want)
		}
	}
	check()
	for i, id := range ids[:5] {
		_, err := s.objects.GetInfo(t.Context(), endpoint+"/"+id, jetstream.GetObjectInfoShowDeleted())
		if gone := errors.Is(err, jetstream.ErrObjectNotFound); gone != (i < 2) {
			t.Errorf("object of command %d: %v", i, err)
		}
	}
	s.stop()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	start(t, srv, setup{history: 3, dir: dir})
	check()
}

// put stores an object and returns its name.
func put(t *testing.T, s *running, name, content string) string {
	t.Helper()
	if _, err := s.objects.PutString(t.Context(), name, content); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestObjects has the objects of dropped files removed once their command is
// completed, and what nothing refers to removed after a day.
func TestObjects(t *testing.T) {
	srv := natstest.Start(t)
	clk := newClock()
	s := start(t, srv, setup{clock: clk})
	c := client{t: t, b: srv.Bus(t, access.Gateway)}
	endpoint := newUUID()
	dropped := put(t, s, endpoint+"/dropped", "tool")
	kept := put(t, s, endpoint+"/kept", "output")
	orphan := put(t, s, endpoint+"/orphan", "nobody's")
	id := c.queue(endpoint, message.CommandQueueRequest{
		Drop: []message.CommandFile{{Name: "tool", Data: &message.CommandBlob{Object: dropped, Size: 4}}}}).UUID
	if got := c.next(endpoint); len(got.Drop) != 1 || got.Drop[0].Data.Object != dropped || got.Drop[0].UUID == "" {
		t.Fatalf("handed out with %+v", got.Drop)
	}
	exists := func(name string) bool {
		_, err := s.objects.GetInfo(t.Context(), name, jetstream.GetObjectInfoShowDeleted())
		if err != nil && !errors.Is(err, jetstream.ErrObjectNotFound) {
			t.Fatal(err)
		}
		return err == nil
	}
	if got := c.result(message.CommandResultRequest{Endpoint: endpoint, UUID: id, Fetch: map[string]message.CommandFile{
		"x": {UUID: newUUID(), Data: &message.CommandBlob{Object: kept, Size: 6}}}}); got != message.ResultAccepted {
		t.Fatalf("result was %s", got)
	}
	if exists(dropped) || !exists(kept) || !exists(orphan) {
		t.Fatalf("dropped %t, kept %t, orphan %t", exists(dropped), exists(kept), exists(orphan))
	}
	// An upload that breaks off where its sender may not clean up.
	broken := io.MultiReader(bytes.NewReader(make([]byte, 300<<10)), iotest.ErrReader(errors.New("broken off")))
	ctx, cancel := context.WithCancel(t.Context())
	cancelled := readerFunc(func(p []byte) (int, error) {
		n, err := broken.Read(p)
		if err != nil {
			cancel()
		}
		return n, err
	})
	if _, err := s.objects.Put(ctx, jetstream.ObjectMeta{Name: endpoint + "/broken"}, cancelled); err == nil {
		t.Fatal("the upload did not break off")
	}
	messages := func() uint64 {
		info, err := s.files.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return info.State.Msgs
	}
	// Part and description of two objects, and three parts of the broken one,
	// which were published without waiting for them.
	const before = 7
	await(t, "parts of the broken upload are stored", func() bool { return messages() == before })
	if err := s.tidy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now := messages(); now != before {
		t.Fatalf("fresh objects are left alone; %d messages of %d are left", now, before)
	}
	clk.advance(25 * time.Hour)
	if err := s.tidy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now := messages(); now != 2 || !exists(kept) {
		t.Fatalf("%d messages left, kept %t; want the 2 of the kept object", now, exists(kept))
	}
	if b, err := s.objects.GetString(t.Context(), kept); err != nil || b != "output" {
		t.Fatalf("kept object is %q, %v", b, err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestForget(t *testing.T) {
	srv := natstest.Start(t)
	s := start(t, srv, setup{})
	c := client{t: t, b: srv.Bus(t, access.Gateway)}
	endpoint, other := newUUID(), newUUID()
	for range maxPage + 3 {
		c.queue(endpoint, message.CommandQueueRequest{})
	}
	c.next(endpoint)
	c.queue(other, message.CommandQueueRequest{})
	r, err := ask[message.CommandsForgetReply](c, message.CommandsForget, message.CommandRequest{Endpoint: endpoint})
	if err != nil || r.Deleted != maxPage+3 {
		t.Fatalf("deleted %d, %v", r.Deleted, err)
	}
	if got := c.list(endpoint, 0); len(got) != 0 {
		t.Errorf("%d commands left", len(got))
	}
	if got := c.next(endpoint); got != nil {
		t.Errorf("handed out %s", got.UUID)
	}
	if got := c.next(other); got == nil {
		t.Error("the command of another endpoint is gone")
	}
	await(t, "no command waits and one is sent", func() bool {
		return s.metric(t, "queued_commands") == 0 && s.metric(t, "sent_commands") == 1
	})
}

func TestRefused(t *testing.T) {
	srv := natstest.Start(t)
	start(t, srv, setup{})
	c := client{t: t, b: srv.Bus(t, access.Gateway)}
	endpoint := newUUID()
	big := &message.CommandBlob{Data: make([]byte, message.MaxInlineBlob+1)}
	for _, tc := range []struct {
		name    string
		subject string
		q       any
		kind    fault.Kind
	}{
		{"queue, no uuid", message.CommandsQueue, message.CommandQueueRequest{Endpoint: "*"}, fault.Invalid},
		{"queue, negative timeout", message.CommandsQueue, message.CommandQueueRequest{Endpoint: endpoint, Timeout: -1}, fault.Invalid},
		{"queue, large value", message.CommandsQueue, message.CommandQueueRequest{Endpoint: endpoint, Drop: []message.CommandFile{{Data: big}}}, fault.TooLarge},
		{"queue, large arguments", message.CommandsQueue, message.CommandQueueRequest{Endpoint: endpoint, Args: []string{strings.Repeat("x", message.MaxCommandRecord)}}, fault.TooLarge},
		{"queue, object of another endpoint", message.CommandsQueue, message.CommandQueueRequest{Endpoint: endpoint,
			Drop: []message.CommandFile{{Data: &message.CommandBlob{Object: newUUID() + "/x"}}}}, fault.Invalid},
		{"queue, no JSON", message.CommandsQueue, "x", fault.Invalid},
		{"get, no uuid", message.CommandsGet, message.CommandRequest{}, fault.Invalid},
		{"list, no uuid", message.CommandsList, message.CommandsListRequest{Endpoint: "x.y"}, fault.Invalid},
		{"next, no uuid", message.CommandsNext, message.CommandRequest{Endpoint: ">"}, fault.Invalid},
		{"result, no uuid", message.CommandsResult, message.CommandResultRequest{}, fault.Invalid},
		{"cancel, unknown", message.CommandsCancel, message.CommandRequest{Endpoint: endpoint, UUID: newUUID()}, fault.NotFound},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := ask[message.CommandReply](c, tc.subject, tc.q); !fault.Is(err, tc.kind) {
				t.Fatalf("got %v, want an error of kind %s", err, tc.kind)
			}
		})
	}
	if got := c.newest(endpoint); got != nil {
		t.Errorf("there is a command: %+v", got)
	}
}

// TestQueueIsBounded has no more commands wait for an endpoint than may, and
// leaves those of others alone.
func TestQueueIsBounded(t *testing.T) {
	srv := natstest.Start(t)
	start(t, srv, setup{maxQueued: 3})
	c := client{t: t, b: srv.Bus(t, access.Gateway)}
	endpoint := newUUID()
	queue := func(endpoint string) error {
		_, err := ask[message.CommandReply](c, message.CommandsQueue, message.CommandQueueRequest{Endpoint: endpoint})
		return err
	}
	for range 3 {
		if err := queue(endpoint); err != nil {
			t.Fatal(err)
		}
	}
	if err := queue(endpoint); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "3 commands wait") {
		t.Errorf("the fourth: %v", err)
	}
	if err := queue(newUUID()); err != nil {
		t.Errorf("another endpoint: %v", err)
	}
	if c.next(endpoint) == nil {
		t.Fatal("nothing is handed out")
	}
	if err := queue(endpoint); err != nil {
		t.Errorf("after one was handed out: %v", err)
	}
	if got := c.list(endpoint, 0); len(got) != 4 {
		t.Errorf("%d commands, want 4", len(got))
	}
}

// TestForeignKeys has values that are no commands passed over.
func TestForeignKeys(t *testing.T) {
	srv := natstest.Start(t)
	s := start(t, srv, setup{})
	c := client{t: t, b: srv.Bus(t, access.Gateway)}
	endpoint := newUUID()
	for key, value := range map[string]string{
		"something":                              "{}",
		endpoint + ".x":                          "{}",
		message.CommandKey(endpoint, newUUID()):  "{",
		message.CommandKey(newUUID(), newUUID()): `{"state":"queued"}`,
		message.CommandKey(endpoint, newUUID()):  `{"state":"lost"}`,
		message.CommandKey(endpoint, endpoint):   "",
	} {
		if _, err := s.kv.Put(t.Context(), key, []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	id := c.queue(endpoint, message.CommandQueueRequest{}).UUID
	if got := c.list(endpoint, 0); len(got) != 1 || got[0].UUID != id {
		t.Fatalf("commands are %+v", got)
	}
	if err := s.Ready(); err != nil {
		t.Fatal(err)
	}
}

// TestServerRestart has the record survive a restart of the NATS server.
func TestServerRestart(t *testing.T) {
	srv := natstest.Start(t)
	dir := t.TempDir()
	s := start(t, srv, setup{dir: dir})
	c := client{t: t, b: srv.Bus(t, access.Gateway)}
	endpoint := newUUID()
	id := c.queue(endpoint, message.CommandQueueRequest{}).UUID
	s.stop()
	srv.Restart(t)
	start(t, srv, setup{dir: dir})
	c.b = srv.Bus(t, access.Gateway)
	if got := c.next(endpoint); got == nil || got.UUID != id {
		t.Fatalf("next command is %+v, want %s", got, id)
	}
}

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// ObjectStore.Put leaves it behind when it ends before the goroutine
		// was first scheduled.
		goleak.IgnoreAnyFunction("github.com/nats-io/nats.go/jetstream.(*jetStream).resetPendingAcksOnReconnect"))
}
