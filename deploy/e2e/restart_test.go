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
// again, and repeats what was not acknowledged, as agents do.
func TestStopInMidLoad(t *testing.T) {
	for name, stop := range map[string]func(*proc){"SIGTERM": (*proc).terminate, "SIGKILL": (*proc).kill} {
		t.Run(name, func(t *testing.T) {
			const agents, batches, size = 6, 60, 40
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
