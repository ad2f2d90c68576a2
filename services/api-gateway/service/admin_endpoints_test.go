package gateway

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
)

func TestEndpoints(t *testing.T) {
	r := newRig(t, nil)
	show := func(e message.Endpoint) string {
		return fmt.Sprintf(`{"uuid":"%s","hostname":"%s","ip":"%s","key":"%s","last-connection":"%s"}`, e.UUID, e.Hostname, e.IP, e.Key, e.LastConnection.Format(time.RFC3339Nano))
	}
	r.expect("GET", "/endpoints", "", ok("[]"))
	var all []string
	var list []message.Endpoint
	for range 5 {
		e := r.endpoint()
		if e.UUID == "" || e.Key == "" || !e.LastConnection.IsZero() {
			t.Fatalf("new endpoint %+v", e)
		}
		list, all = append(list, e), append(all, show(e))
		if a := r.agent(e, "GET", "/key", nil, "Hostname", ""); a.code != 200 {
			t.Errorf("a new endpoint is answered with %d", a.code)
		}
	}
	r.svc.seen.forget(list[0].UUID)
	r.expect("GET", "/endpoints/"+list[0].UUID, "", ok(show(list[0])))
	r.expect("PUT", "/endpoints?x=%zz", `{"uuid":"x"}`, nok(`Failed to parse query: invalid URL escape "%zz"`))
	for _, e := range list {
		r.svc.seen.forget(e.UUID)
	}
	r.expect("GET", "/endpoints", "", ok("["+strings.Join(all, ",")+"]"))

	t.Run("what this gateway has seen", func(t *testing.T) {
		began := time.Now()
		if a := r.agent(list[1], "GET", "/key", nil); a.code != 200 {
			t.Fatalf("%d %s", a.code, a.body)
		}
		for _, e := range []message.Endpoint{data[message.Endpoint](r, "GET", "/endpoints/"+list[1].UUID, ""), data[[]message.Endpoint](r, "GET", "/endpoints", "")[1]} {
			if e.Hostname != "WS-03e3" || e.IP != "127.0.0.1" || e.LastConnection.Before(began) || e.LastConnection.Location() != time.UTC {
				t.Errorf("seen %+v", e)
			}
		}
		for stated, want := range map[string]string{"192.0.2.77": "192.0.2.77", "::ffff:192.0.2.78": "192.0.2.78", "fe80::1%eth0": "fe80::1", "x": "127.0.0.1", "": "127.0.0.1"} {
			h := map[string]string{"X-Endpoint-Uuid": list[1].UUID, "X-Api-Key": list[1].Key, "X-Endpoint-Hostname": "WS-03e3", "X-Endpoint-IP": stated}
			if a := r.do("GET", r.svc.AgentAddr(), "/key", nil, h); a.code != 200 {
				t.Fatalf("%d %s", a.code, a.body)
			}
			if e := data[message.Endpoint](r, "GET", "/endpoints/"+list[1].UUID, ""); e.IP != want {
				t.Errorf("stated %q, shown %q, want %q", stated, e.IP, want)
			}
		}
	})
	t.Run("the registry is told soon, and not of every request", func(t *testing.T) {
		const requests = 200
		told := func() (message.Seen, int) {
			r.registry.mu.Lock()
			defer r.registry.mu.Unlock()
			return r.registry.seen[list[1].UUID], r.registry.tells
		}
		_, before := told()
		for range requests {
			if a := r.agent(list[1], "GET", "/key", nil); a.code != 200 {
				t.Fatalf("%d %s", a.code, a.body)
			}
		}
		if _, n := told(); n-before > requests/10 {
			t.Errorf("the registry was told %d times of %d requests", n-before, requests)
		}
		e := data[message.Endpoint](r, "GET", "/endpoints/"+list[1].UUID, "")
		eventually(t, "the registry is told", func() bool {
			s, _ := told()
			return s.Time.Equal(e.LastConnection) && s.IP == e.IP
		})
	})
	t.Run("delete", func(t *testing.T) {
		before := data[message.Endpoint](r, "GET", "/endpoints/"+list[1].UUID, "")
		r.expect("DELETE", "/endpoints/"+list[1].UUID, "", ok(show(before)))
		r.expect("DELETE", "/endpoints/"+list[1].UUID, "", nok("Unknown endpoint: "+list[1].UUID))
		r.expect("GET", "/endpoints/"+list[1].UUID, "", nok("Unknown endpoint: "+list[1].UUID))
		if a := r.agent(list[1], "GET", "/key", nil); a.code != 403 {
			t.Errorf("a deleted endpoint is answered with %d", a.code)
		}
		if e := data[message.Endpoint](r, "GET", "/endpoints/"+list[2].UUID, ""); e.UUID != list[2].UUID {
			t.Errorf("the one after it is %+v", e)
		}
	})
}
