package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
)

// pendingRetry is how long to wait before a lost watch is begun again.
const pendingRetry = 500 * time.Millisecond

// pendingCommands knows which endpoints may have a command that waits for
// them, so that the polls of all others ask nobody. It follows the bucket
// commands without reading its values: an endpoint of which something has
// changed may have a command, until command-dispatch says that as of that
// change or later it has none.
type pendingCommands struct {
	js  jetstream.JetStream
	log *slog.Logger

	mu sync.Mutex
	// complete is false while changes may have been missed.
	complete bool
	// may holds the revision of the last change by endpoint.
	may      map[string]uint64
	watchers map[string]map[chan struct{}]bool
}

func newPendingCommands(js jetstream.JetStream, log *slog.Logger) *pendingCommands {
	return &pendingCommands{js: js, log: log, may: map[string]uint64{}, watchers: map[string]map[chan struct{}]bool{}}
}

// have tells whether an endpoint may have a command that waits.
func (p *pendingCommands) have(endpoint string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, may := p.may[endpoint]
	return may || !p.complete
}

// none notes that as of a revision an endpoint has no command that waits.
func (p *pendingCommands) none(endpoint string, revision uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if last, ok := p.may[endpoint]; ok && last <= revision {
		delete(p.may, endpoint)
	}
}

// changed notes a change of one of an endpoint's commands.
func (p *pendingCommands) changed(endpoint string, revision uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.may[endpoint] = max(p.may[endpoint], revision)
	for ch := range p.watchers[endpoint] {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// watch returns a channel that receives after changes of an endpoint's
// commands, until stop is called.
func (p *pendingCommands) watch(endpoint string) (changes <-chan struct{}, stop func()) {
	ch := make(chan struct{}, 1)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.watchers[endpoint] == nil {
		p.watchers[endpoint] = map[chan struct{}]bool{}
	}
	p.watchers[endpoint][ch] = true
	return ch, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if delete(p.watchers[endpoint], ch); len(p.watchers[endpoint]) == 0 {
			delete(p.watchers, endpoint)
		}
	}
}

func (p *pendingCommands) setComplete(complete bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.complete = complete
}

// run follows the bucket until ctx ends.
func (p *pendingCommands) run(ctx context.Context) {
	for ctx.Err() == nil {
		err := p.follow(ctx)
		p.setComplete(false)
		if ctx.Err() != nil {
			return
		}
		p.log.Warn("watch of the commands is lost, trying again", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(pendingRetry):
		}
	}
}

func (p *pendingCommands) follow(ctx context.Context) error {
	name, filter := stream.KVStream(stream.Commands)
	if _, err := stream.Await(ctx, p.js, name); err != nil {
		return err
	}
	// The leader knows it. The consumer may stand at a server of a cluster whose
	// copy of the bucket is behind.
	newest, err := stream.LastSequence(ctx, p.js, name, filter)
	if err != nil {
		return fmt.Errorf("newest command: %w", err)
	}
	c, err := p.js.OrderedConsumer(ctx, name, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{filter}, DeliverPolicy: jetstream.DeliverAllPolicy, HeadersOnly: true,
	})
	if err != nil {
		return fmt.Errorf("consumer: %w", err)
	}
	info, err := c.Info(ctx)
	if err != nil {
		return fmt.Errorf("consumer: %w", err)
	}
	consume, err := c.Consume(func(m jetstream.Msg) {
		meta, err := m.Metadata()
		if err != nil {
			return // not a message of a stream
		}
		if endpoint, _, err := message.ParseCommandKey(strings.TrimPrefix(m.Subject(), keySubject(stream.Commands, ""))); err == nil {
			p.changed(endpoint, meta.Sequence.Stream)
		}
		if meta.NumPending == 0 && meta.Sequence.Stream >= newest {
			p.setComplete(true)
		}
	}, stream.Following(p.js)...)
	if err != nil {
		return fmt.Errorf("consume: %w", err)
	}
	defer consume.Stop()
	if info.NumPending == 0 && newest == 0 {
		p.setComplete(true)
	}
	select {
	case <-ctx.Done():
		return nil
	case <-consume.Closed():
		return errors.New("the consumer was closed")
	}
}
