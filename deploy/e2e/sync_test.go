package e2e

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
)

// synced demands what a process says of its service's store.
func (p *proc) synced(service string, want float64) {
	p.t.Helper()
	name := "nightjar_" + strings.ReplaceAll(service, "-", "_") + "_store_sync_always"
	if got := p.metric(name); got != want {
		p.t.Errorf("%s is %v, want %v", name, got, want)
	}
}

// TestSyncSettings asks a running manager when it syncs: always unless it is
// told an interval, which then holds for JetStream and for every store.
func TestSyncSettings(t *testing.T) {
	for name, tc := range map[string]struct {
		args             []string
		always, interval float64
	}{
		"by default": {nil, 1, -1},
		"always":     {[]string{"--sync", "always"}, 1, -1},
		"interval":   {[]string{"--sync", "10s"}, 0, 10},
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, t.TempDir(), append(tc.args, "--tls", "off")...)
			if got := p.metric("nightjar_standalone_jetstream_sync_always"); got != tc.always {
				t.Errorf("JetStream syncs always: %v, want %v", got, tc.always)
			}
			if got := p.metric("nightjar_standalone_jetstream_sync_interval_seconds"); tc.interval >= 0 && got != tc.interval {
				t.Errorf("JetStream syncs every %v s, want %v", got, tc.interval)
			}
			for _, s := range access.Services {
				p.synced(s, tc.always)
			}
		})
	}
}

// syncs asks NATS servers and services that run apart, with the configuration
// that is shipped, when they sync.
func (c *cluster) syncs(t *testing.T) {
	for _, s := range c.nats {
		resp, err := http.Get("http://" + s.monitor + "/varz")
		if err != nil {
			t.Fatal(err)
		}
		var v struct {
			JetStream struct {
				Config struct {
					SyncAlways bool `json:"sync_always"`
				} `json:"config"`
			} `json:"jetstream"`
		}
		err = json.NewDecoder(resp.Body).Decode(&v)
		if cerr := resp.Body.Close(); err != nil || cerr != nil {
			t.Fatal(err, cerr)
		}
		if !v.JetStream.Config.SyncAlways {
			t.Errorf("NATS server %s does not sync always", s.addr)
		}
	}
	for _, s := range c.services {
		(&proc{t: t, ops: s.ops}).synced(s.kind, 1)
	}
}
