package registry_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
)

// Two replicas share the requests; each answer holds at once, whichever
// replica is asked next.
func TestReplicas(t *testing.T) {
	srv := natstest.Start(t)
	start(t, srv, t.TempDir())
	start(t, srv, t.TempDir())
	c := newClient(t, srv)
	e := c.create()

	t.Run("one binding wins", func(t *testing.T) {
		for round := range 10 {
			e := c.create()
			var wins sync.Map
			var group sync.WaitGroup
			for i := range 6 {
				group.Go(func() {
					name := fmt.Sprintf("host-%d-%d", round, i)
					reply, err := call[message.EndpointReply](c, message.RegistryBind, message.EndpointRequest{UUID: e.UUID, Hostname: name})
					switch {
					case err == nil && reply.Endpoint.Hostname == name:
						wins.Store(name, true)
					case !fault.Is(err, fault.Conflict):
						t.Errorf("bind: %+v, %v", reply, err)
					}
				})
			}
			group.Wait()
			var winners []string
			wins.Range(func(name, _ any) bool { winners = append(winners, name.(string)); return true })
			if len(winners) != 1 || c.get(e.UUID).Hostname != winners[0] {
				t.Fatalf("winners are %v, bound is %q", winners, c.get(e.UUID).Hostname)
			}
		}
	})

	t.Run("one deletion wins", func(t *testing.T) {
		for range 10 {
			e := c.create()
			var group sync.WaitGroup
			results := make([]error, 6)
			for i := range results {
				group.Go(func() {
					_, results[i] = call[message.EndpointReply](c, message.RegistryDelete, message.EndpointRequest{UUID: e.UUID})
				})
			}
			group.Wait()
			deleted := 0
			for _, err := range results {
				if err == nil {
					deleted++
				} else if !fault.Is(err, fault.NotFound) {
					t.Errorf("delete: %v", err)
				}
			}
			if deleted != 1 {
				t.Fatalf("deleted %d times", deleted)
			}
		}
	})

	t.Run("many are created at once", func(t *testing.T) {
		before := len(c.all())
		var group sync.WaitGroup
		made := make([]message.Endpoint, 200)
		for i := range made {
			group.Go(func() { made[i] = c.create() })
		}
		group.Wait()
		all := c.all()
		if len(all) != before+len(made) {
			t.Errorf("%d endpoints, want %d", len(all), before+len(made))
		}
		for _, m := range made {
			if n := count(all, m); n != 1 {
				t.Errorf("%s is listed %d times", m.UUID, n)
			}
		}
	})

	t.Run("contacts are not lost", func(t *testing.T) {
		var group sync.WaitGroup
		made := make([]message.Endpoint, 40)
		for i := range made {
			group.Go(func() {
				made[i] = c.create()
				c.seen(made[i].UUID, time.Now(), "192.0.2.1")
			})
		}
		group.Wait()
		for _, m := range made {
			if got := c.get(m.UUID); got.IP != "192.0.2.1" {
				t.Errorf("contact of %s got lost", m.UUID)
			}
		}
	})

	t.Run("reads see what was answered", func(t *testing.T) {
		for i := range 40 {
			e := c.create()
			if got := c.get(e.UUID); got != e {
				t.Fatalf("round %d: %+v, want %+v", i, got, e)
			}
			must[message.EndpointReply](c, message.RegistryDelete, message.EndpointRequest{UUID: e.UUID})
			c.refused(message.RegistryGet, message.EndpointRequest{UUID: e.UUID}, fault.NotFound, "Unknown endpoint: "+e.UUID)
		}
	})

	if got := c.get(e.UUID); got != e {
		t.Errorf("an endpoint that nobody touched changed: %+v, want %+v", got, e)
	}
}
