package dispatch

import (
	"context"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
)

// modelCommand is what a command must look like.
type modelCommand struct {
	uuid    string
	state   message.CommandState
	timeout time.Duration
	sent    time.Time
	stdout  string
}

// model is the queue of one endpoint, written down in the simplest way.
type model struct {
	endpoint string
	commands []*modelCommand
}

// TestStateMachine holds the service, two replicas of it, against a model
// through random sequences of all requests and of time.
func TestStateMachine(t *testing.T) {
	srv := natstest.Start(t)
	clk := newClock()
	replicas := []*running{start(t, srv, setup{clock: clk}), start(t, srv, setup{clock: clk})}
	b := srv.Bus(t, access.Gateway)
	rapid.Check(t, func(rt *rapid.T) {
		c := client{t: t, b: b}
		models := []*model{{endpoint: newUUID()}, {endpoint: newUUID()}}
		pick := func(rt *rapid.T) *model { return rapid.SampledFrom(models).Draw(rt, "endpoint") }
		command := func(rt *rapid.T, m *model) *modelCommand {
			if len(m.commands) == 0 {
				rt.Skip("no command")
			}
			return rapid.SampledFrom(m.commands).Draw(rt, "command")
		}
		rt.Repeat(map[string]func(*rapid.T){
			"queue": func(rt *rapid.T) {
				m := pick(rt)
				timeout := rapid.SampledFrom([]time.Duration{0, time.Second, time.Hour}).Draw(rt, "timeout")
				r := c.queue(m.endpoint, message.CommandQueueRequest{Name: "echo", Timeout: timeout})
				m.commands = append(m.commands, &modelCommand{uuid: r.UUID, state: message.CommandQueued, timeout: timeout})
			},
			"next": func(rt *rapid.T) {
				m := pick(rt)
				var want *modelCommand
				for _, x := range m.commands {
					if x.state == message.CommandQueued {
						want = x
						break
					}
				}
				got := c.next(m.endpoint)
				switch {
				case want == nil && got != nil:
					rt.Fatalf("handed out %s, nothing was waiting", got.UUID)
				case want == nil:
					return
				case got == nil || got.UUID != want.uuid:
					rt.Fatalf("handed out %+v, want %s", got, want.uuid)
				case got.State != message.CommandQueued || !got.Sent.IsZero():
					rt.Fatalf("handed out as %s, sent %s; want as it was before", got.State, got.Sent)
				}
				want.state, want.sent = message.CommandSent, clk.Now()
			},
			"result": func(rt *rapid.T) {
				m := pick(rt)
				x := command(rt, m)
				out := rapid.StringN(0, 20, -1).Draw(rt, "stdout")
				want := map[message.CommandState]message.CommandOutcome{
					message.CommandQueued: message.ResultEarly, message.CommandCancelled: message.ResultEarly,
					message.CommandSent: message.ResultAccepted, message.CommandCompleted: message.ResultRepeated,
					message.CommandExpired: message.ResultLate,
				}[x.state]
				got := c.result(message.CommandResultRequest{Endpoint: m.endpoint, UUID: x.uuid, Stdout: &message.CommandBlob{Data: []byte(out), Size: int64(len(out))}})
				if got != want {
					rt.Fatalf("result for a %s command was %s, want %s", x.state, got, want)
				}
				if got == message.ResultAccepted {
					x.state, x.stdout = message.CommandCompleted, out
				}
			},
			"foreign result": func(rt *rapid.T) {
				m := pick(rt)
				x := command(rt, m)
				other := models[0]
				if other == m {
					other = models[1]
				}
				if got := c.result(message.CommandResultRequest{Endpoint: other.endpoint, UUID: x.uuid}); got != message.ResultForeign {
					rt.Fatalf("result from another endpoint was %s", got)
				}
			},
			"cancel": func(rt *rapid.T) {
				m := pick(rt)
				x := command(rt, m)
				_, err := ask[message.CommandReply](c, message.CommandsCancel, message.CommandRequest{Endpoint: m.endpoint, UUID: x.uuid})
				if x.state == message.CommandQueued {
					if err != nil {
						rt.Fatalf("cancel: %v", err)
					}
					x.state = message.CommandCancelled
				} else if !fault.Is(err, fault.Conflict) {
					rt.Fatalf("cancel of a %s command: %v, want a conflict", x.state, err)
				}
			},
			"time passes": func(rt *rapid.T) {
				clk.advance(rapid.SampledFrom([]time.Duration{time.Second, time.Minute, 11 * time.Minute, 2 * time.Hour}).Draw(rt, "passed"))
				s := rapid.SampledFrom(replicas).Draw(rt, "replica")
				if err := s.expire(context.Background()); err != nil {
					rt.Fatalf("expire: %v", err)
				}
				for _, m := range models {
					for _, x := range m.commands {
						limit := x.timeout + time.Minute
						if x.timeout == 0 {
							limit = 10 * time.Minute
						}
						if x.state == message.CommandSent && clk.Now().Sub(x.sent) > limit {
							x.state = message.CommandExpired
						}
					}
				}
			},
			"": func(rt *rapid.T) {
				for _, m := range models {
					m.check(rt, c)
				}
			},
		})
	})
	for _, s := range replicas {
		if n := s.metric(t, "errors_total"); n != 0 {
			t.Errorf("%v errors", n)
		}
	}
}

// check holds what the service tells of an endpoint against the model.
func (m *model) check(rt *rapid.T, c client) {
	newest := c.newest(m.endpoint)
	if len(m.commands) == 0 {
		if newest != nil {
			rt.Fatalf("newest command is %+v, want none", newest)
		}
		return
	}
	if want := m.commands[len(m.commands)-1].uuid; newest == nil || newest.UUID != want {
		rt.Fatalf("newest command is %+v, want %s", newest, want)
	}
	all := c.list(m.endpoint, 3)
	if len(all) != len(m.commands) {
		rt.Fatalf("%d commands listed, want %d", len(all), len(m.commands))
	}
	for i, got := range all {
		want := m.commands[len(m.commands)-1-i]
		if got.UUID != want.uuid || got.State != want.state {
			rt.Fatalf("command %d is %s %s, want %s %s", i, got.UUID, got.State, want.uuid, want.state)
		}
		if !got.Sent.Equal(want.sent) {
			rt.Fatalf("command %d sent at %s, want %s", i, got.Sent, want.sent)
		}
		if got.Ended.IsZero() == want.state.Ended() {
			rt.Fatalf("command %d is %s and ended at %s", i, got.State, got.Ended)
		}
		if (got.Error != "") != (want.state == message.CommandExpired || want.state == message.CommandCancelled) {
			rt.Fatalf("command %d is %s with error %q", i, got.State, got.Error)
		}
		if want.state == message.CommandCompleted {
			if full := c.get(m.endpoint, want.uuid); full.Stdout == nil || string(full.Stdout.Data) != want.stdout {
				rt.Fatalf("command %d has stdout %+v, want %q", i, full.Stdout, want.stdout)
			}
		}
	}
}
