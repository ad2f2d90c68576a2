package natsd

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
	_ "unsafe" // go:linkname

	_ "github.com/nats-io/nats-server/v2/server/ats" // whose variables are set here

	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

// tick is how often the server's clock is set. The server takes the time from it
// where it may be a little old: when it has used a block that it keeps in memory,
// and which messages have expired. So these leave up to a tick later.
const tick = time.Second

// The server sets its clock 10 times a second, from when it has a stream, and
// wakes the process each time. It exports nothing that slows it down.

//go:linkname serverTime github.com/nats-io/nats-server/v2/server/ats.utime
var serverTime atomic.Int64

//go:linkname serverClockDone github.com/nats-io/nats-server/v2/server/ats.done
var serverClockDone chan struct{}

// slowClock ends the clock of the server's own, or has it end when it begins, and
// keeps the time for as long as the process runs. The server sends to the same
// channel when its last stream is closed: that ends the next one.
var slowClock = sync.OnceFunc(func() {
	select {
	case serverClockDone <- struct{}{}:
	default: // what a server before this one has sent waits there
	}
	go keepTime()
})

func keepTime() {
	lifecycle.Repeat(context.Background(), tick, func() { serverTime.Store(time.Now().UnixNano()) })
}
