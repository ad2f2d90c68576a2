package e2e

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestAnswersWhileIngestIsSaturated has agents send events as fast as they are
// taken. Meanwhile polls, probes and commands are answered as without load;
// how long that takes, beside how long it takes without, is logged.
func TestAnswersWhileIngestIsSaturated(t *testing.T) {
	const phase, agents, size = 4 * time.Second, 8, 200
	p := start(t, t.TempDir())
	p.data(http.MethodPost, "/rules", testRule)
	e := p.enrol()
	probes := p.probes(e)
	for _, probe := range probes {
		probe.ask() // connections are made, the hostname is bound
	}
	idle := measure(probes, phase)

	var acked, refused atomic.Int64
	var load sync.WaitGroup
	stop := make(chan struct{})
	for range agents {
		sender := p.enrol()
		load.Go(func() {
			for n := 0; ; n += size {
				select {
				case <-stop:
					return
				default:
				}
				at := time.Now()
				lines := [][]byte{badEvent(n, at)}
				for i := n + 1; i < n+size; i++ {
					lines = append(lines, plainEvent(i, at))
				}
				switch code, err := p.post(sender, false, lines...); {
				case err == nil && code == http.StatusOK:
					acked.Add(1)
				case err == nil && code == http.StatusServiceUnavailable:
					refused.Add(1)
				default:
					t.Errorf("POST /logs: %d %v", code, err)
					return
				}
			}
		})
	}
	defer load.Wait()
	defer close(stop)
	eventually(t, "every agent sends", func() error {
		if n := acked.Load(); n < 2*agents {
			return fmt.Errorf("%d batches are acknowledged", n)
		}
		return nil
	})
	before := acked.Load()
	busy := measure(probes, phase)
	if acked.Load() == before {
		t.Error("nothing was ingested while the answers were measured")
	}
	t.Logf("load: %d batches of %d events acknowledged, %d refused", acked.Load()-before, size, refused.Load())
	t.Logf("%-22s %8s %10s %10s %10s %10s %10s", "", "answers", "idle p50", "idle p99", "load p50", "load p99", "ratios")
	for i, probe := range probes {
		a, b := idle[i], busy[i]
		t.Logf("%-22s %8d %10v %10v %10v %10v %4.1f %4.1f", probe.name, len(b), quantile(a, 50), quantile(a, 99), quantile(b, 50), quantile(b, 99),
			float64(quantile(b, 50))/float64(quantile(a, 50)), float64(quantile(b, 99))/float64(quantile(a, 99)))
	}
}

// probe is something that must be answered at any time. ask fails the test
// when the answer is not the right one.
type probe struct {
	name string
	// every is in which rounds of a measurement it is asked for.
	every int
	ask   func()
}

// probes are what an endpoint, its operator and an orchestrator ask for.
func (p *proc) probes(e endpoint) []probe {
	p.t.Helper()
	sum, err := p.getOK(e, "/rules/sha256")
	if err != nil || len(sum) != 64 {
		p.t.Fatalf("hash of the rules is %q, %v", sum, err)
	}
	health := func(path string) func() {
		return func() {
			p.t.Helper()
			resp, err := http.Get(p.ops + path)
			if err != nil {
				p.t.Fatal(err)
			}
			defer func() { _ = resp.Body.Close() }()
			if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
				p.t.Errorf("GET %s: %s %s %v", path, resp.Status, text, err)
			}
		}
	}
	return []probe{
		{"GET /commands", 1, func() {
			if c, err := p.poll(e); err != nil || c != nil {
				p.t.Errorf("poll: %+v, %v; want nothing to do", c, err)
			}
		}},
		{"GET /rules/sha256", 1, func() {
			if got, err := p.getOK(e, "/rules/sha256"); err != nil || got != sum {
				p.t.Errorf("hash of the rules is %q, %v, want %q", got, err, sum)
			}
		}},
		{"GET /healthz", 1, health("/healthz")},
		{"GET /readyz", 1, health("/readyz")},
		{"command round trip", 5, func() {
			queued := p.command(e, `{"command-line":"whoami"}`)
			handed := p.fetchCommand(e)
			p.answer(e, strings.NewReader(`{"uuid":"`+handed.UUID+`","name":"whoami","stdout":"cm9vdAo="}`))
			if done := p.newest(e, ""); handed.UUID != queued.UUID || done.UUID != queued.UUID || !done.Completed || string(done.Stdout) != `"cm9vdAo="` {
				p.t.Errorf("queued was %s, handed out %s, shown is %s, completed %t, stdout %s", queued.UUID, handed.UUID, done.UUID, done.Completed, done.Stdout)
			}
		}},
	}
}

// measure asks each probe in turn, as long as told and some rounds at least,
// and returns how long the answers of each took, sorted.
func measure(probes []probe, long time.Duration) [][]time.Duration {
	took := make([][]time.Duration, len(probes))
	pace := time.NewTicker(10 * time.Millisecond)
	defer pace.Stop()
	end := time.Now().Add(long)
	for round := 0; round < 20 || time.Now().Before(end); round++ {
		<-pace.C
		for i, probe := range probes {
			if round%probe.every > 0 {
				continue
			}
			at := time.Now()
			probe.ask()
			took[i] = append(took[i], time.Since(at).Round(10*time.Microsecond))
		}
	}
	for _, list := range took {
		slices.Sort(list)
	}
	return took
}

// quantile returns a percentile of what is sorted.
func quantile(sorted []time.Duration, percent int) time.Duration {
	return sorted[(len(sorted)-1)*percent/100]
}
