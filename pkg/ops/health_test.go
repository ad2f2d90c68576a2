package ops_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/nightjar-edr/nightjar/pkg/ops"
)

// Health says what /readyz says, whatever of the machine's addresses the
// process listens on.
func TestHealth(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", ":0", "0.0.0.0:0"} {
		s := listen(t, addr)
		var behind atomic.Bool
		s.Check("log-ingest", func() error {
			if behind.Load() {
				return errors.New("view events is 12 behind")
			}
			return nil
		})
		done := make(chan struct{})
		go func() { defer close(done); s.Serve() }()
		t.Cleanup(func() { s.Close(); <-done })
		_, port, err := net.SplitHostPort(s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		asked := strings.TrimSuffix(addr, "0") + port
		if err := ops.Health(t.Context(), asked); err != nil {
			t.Errorf("%s is ready: %v", asked, err)
		}
		behind.Store(true)
		if err := ops.Health(t.Context(), asked); err == nil || !strings.Contains(err.Error(), "view events is 12 behind") {
			t.Errorf("%s is not ready: %v", asked, err)
		}
	}
}

func TestHealthOfNobody(t *testing.T) {
	s := listen(t, "127.0.0.1:0")
	addr := s.Addr()
	s.Close()
	for _, addr := range []string{addr, "127.0.0.1", "127.0.0.1:port"} {
		if err := ops.Health(t.Context(), addr); err == nil || !strings.Contains(err.Error(), addr) {
			t.Errorf("%s: %v", addr, err)
		}
	}
}

// A process that takes the connection and says nothing is not healthy.
func TestHealthEndsWithItsContext(t *testing.T) {
	s := listen(t, "127.0.0.1:0") // listens, and does not serve
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := ops.Health(ctx, s.Addr()); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
