package target_test

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nightjar-edr/nightjar/services/siem-forwarder/internal/target"
)

// TestSyslogUnsent: what our kernel took and the receiver's did not is not
// taken.
func TestSyslogUnsent(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	addr := receiver(t, nil, func(_ int, c net.Conn) {
		if err := c.(*net.TCPConn).SetReadBuffer(4096); err != nil {
			t.Error(err)
		}
		<-release
	})
	defer close(release)
	tg := open(t, target.Options{Output: "syslog+tcp://" + addr, SyslogBytes: 1 << 20, Timeout: 2 * time.Second})
	r := record("some", strings.Repeat("x", 400<<10))
	if err := tg.Send(t.Context(), []target.Record{r})[0]; err == nil || !strings.Contains(err.Error(), "does not take") {
		t.Errorf("got %v", err)
	}
}
