package e2e

import (
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestStopInMidLoad stops the manager in the middle of a load, starts it
// again, and repeats what was not acknowledged, as agents do. Where many send
// single events, these are taken in together.
func TestStopInMidLoad(t *testing.T) {
	for _, tc := range []struct {
		name                  string
		stop                  func(*proc)
		agents, batches, size int
	}{
		{"SIGTERM", (*proc).terminate, 6, 60, 40},
		{"SIGKILL", (*proc).kill, 6, 60, 40},
		{"SIGTERM single events", (*proc).terminate, 40, 40, 1},
		{"SIGKILL single events", (*proc).kill, 40, 40, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			agents, batches, size, stop := tc.agents, tc.batches, tc.size, tc.stop
			p := start(t, t.TempDir())
			p.data(http.MethodPost, "/rules", testRule)
			var gate sync.RWMutex // held for writing while the manager is away
			var acked atomic.Int64
			var work sync.WaitGroup
			endpoints := make([]endpoint, agents)
			base := time.Now().Add(-time.Hour)
			for a := range agents {
				endpoints[a] = p.enrol()
				work.Add(1)
				go func() {
					defer work.Done()
					for b := range batches {
						var lines [][]byte
						for i := range size {
							n := b*size + i
							at := base.Add(time.Duration(n) * time.Second / 2)
							if n%20 == 7 {
								lines = append(lines, badEvent(n, at))
							} else {
								lines = append(lines, plainEvent(n, at))
							}
						}
						for try := 0; ; try++ {
							gate.RLock()
							code, err := p.post(endpoints[a], try%2 == 0, lines...)
							gate.RUnlock()
							if err == nil && code == http.StatusOK {
								break
							}
							if try > 600 {
								t.Errorf("agent %d: never acknowledged: %d %v", a, code, err)
								return
							}
							time.Sleep(50 * time.Millisecond)
						}
						acked.Add(1)
					}
				}()
			}
			for round := range 3 {
				target := int64((round + 1) * agents * batches / 5)
				eventually(t, "load", func() error {
					if acked.Load() < target {
						return fmt.Errorf("%d batches acknowledged", acked.Load())
					}
					return nil
				})
				stop(p)
				gate.Lock()
				p.run()
				gate.Unlock()
			}
			work.Wait()
			for _, e := range endpoints {
				eventually(t, "every event once", func() error {
					if n := len(p.events(e, "logs"+everything)); n != batches*size {
						return fmt.Errorf("%d events, want %d", n, batches*size)
					}
					if n := len(p.events(e, "alerts"+everything)); n != batches*size/20 {
						return fmt.Errorf("%d alerts, want %d", n, batches*size/20)
					}
					return nil
				})
			}
			if n := len(p.alerts()); n != agents*batches*size/20 {
				t.Errorf("%d alerts at the SIEM, want %d", n, agents*batches*size/20)
			}
		})
	}
}
