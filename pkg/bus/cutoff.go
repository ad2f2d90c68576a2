package bus

import (
	"context"
	"slices"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
)

// A server of a cluster that is cut off from the others goes on answering the
// pings of its clients and nothing else. They ask it for something that the
// cluster alone can answer, and go to another server when it fails askTimes in
// a row.
const (
	askInterval = 5 * time.Second
	askTimeout  = 5 * time.Second
	askTimes    = 3
)

// leaveCutOff moves the connection to another server when the one that it is
// connected to is cut off. It ends with ctx, and does nothing where there is
// only one server.
func (b *Bus) leaveCutOff(ctx context.Context) {
	tick := time.NewTicker(askInterval)
	defer tick.Stop()
	for failed := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if len(b.NC.Servers()) < 2 || !b.NC.IsConnected() {
			failed = 0
			continue
		}
		asking, cancel := context.WithTimeout(ctx, askTimeout)
		_, err := b.JS.AccountInfo(asking)
		cancel()
		if err == nil {
			failed = 0
			continue
		}
		if failed++; failed < askTimes || ctx.Err() != nil {
			continue
		}
		failed = 0
		b.Log.Warn("nats server does not reach its cluster, going to another one", "url", b.NC.ConnectedUrlRedacted(), "error", err)
		if err := b.NC.ForceReconnect(); err != nil {
			b.Log.Warn("nats", "error", err)
		}
	}
}

// mayAsk tells whether a user has the right to ask a cluster how it is.
func mayAsk(user string) bool { return slices.Contains(access.Services, user) }
