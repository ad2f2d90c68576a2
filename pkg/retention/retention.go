package retention

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/beat"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

const (
	// seldom is how often a Keeper and Follow look at their stream, often how
	// often a Keeper does that is near the stream's bounds.
	seldom = 10 * time.Second
	often  = 2 * time.Second
	// margin is the part of the size, or of the age, beyond which a removal
	// begins or to which it goes on, so that it does not begin again with the
	// next message; of the age at most an hour.
	margin    = 20
	maxMargin = time.Hour
	// step bounds the messages of one removal; others follow at once.
	step = 50_000
	// lookTimeout bounds a look at the stream, and a removal.
	lookTimeout = time.Minute
)

// Config describes a Keeper.
type Config struct {
	JS jetstream.JetStream
	// Stream is the stream that is kept within its bounds.
	Stream string
	// Limits are the bounds: its MaxAge and KeepBytes.
	Limits stream.Limits
	Clock  *Clock
	// Floor, if not nil, returns the last sequence that may be removed.
	Floor func(context.Context) (uint64, error)
	// Removing, if not nil, is told the sequences of the messages, in their order,
	// before they are removed.
	Removing func(ctx context.Context, seqs []uint64)
	Metrics  *Metrics
	Log      *slog.Logger
	// Every is how often to look; 0 means every 10 seconds, and every 2 seconds
	// at a stream that has half of its size, or whose MaxAge is short.
	Every time.Duration
}

// Metrics are those of a service's Keepers.
type Metrics struct {
	messages, bytes *prometheus.CounterVec
	held            *prometheus.GaugeVec
}

// NewMetrics registers the metrics of the Keepers of a service.
func NewMetrics(reg prometheus.Registerer, service string) *Metrics {
	counter := func(name, help string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "nightjar", Subsystem: service, Name: name, Help: help}, []string{"stream", "reason"})
		reg.MustRegister(c)
		return c
	}
	m := &Metrics{
		messages: counter("retention_removed_messages_total", "Messages removed from a stream because of their age, or of its size."),
		bytes:    counter("retention_removed_bytes_total", "Bytes of the messages removed from a stream because of their age, or of its size."),
		held: prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "nightjar", Subsystem: service, Name: "retention_held",
			Help: "1 while a stream keeps messages beyond their retention because they have not been looked at."}, []string{"stream"}),
	}
	reg.MustRegister(m.held)
	return m
}

// Keeper removes from a stream what is beyond its bounds. Make it with New and
// run it with Run. Several may run on a stream, in replicas of its owner: each
// removes up to a sequence that it has looked for, so they do not add up.
type Keeper struct {
	cfg  Config
	mark uint64
	held bool
	// size is the stream's, in bytes, when it was last looked at.
	size uint64
}

// New returns a Keeper.
func New(cfg Config) *Keeper {
	for _, reason := range []string{reasonAge, reasonSize} {
		cfg.Metrics.messages.WithLabelValues(cfg.Stream, reason).Add(0)
		cfg.Metrics.bytes.WithLabelValues(cfg.Stream, reason).Add(0)
	}
	cfg.Metrics.held.WithLabelValues(cfg.Stream).Set(0)
	return &Keeper{cfg: cfg}
}

// Run removes until ctx ends. Failures are logged and tried again.
func (k *Keeper) Run(ctx context.Context) {
	if k.cfg.Limits.MaxAge <= 0 && k.cfg.Limits.KeepBytes <= 0 {
		return
	}
	for {
		more, err := k.look(ctx)
		if err != nil && ctx.Err() == nil {
			k.cfg.Log.Warn("retention of a stream, will be tried again", "stream", k.cfg.Stream, "error", err)
		}
		if more && err == nil && ctx.Err() == nil {
			continue
		}
		if lifecycle.Sleep(ctx, beat.Next(k.pause())) != nil {
			return
		}
	}
}

// pause returns how long to wait until the next look.
func (k *Keeper) pause() time.Duration {
	switch limits := k.cfg.Limits; {
	case k.cfg.Every > 0:
		return k.cfg.Every
	case limits.KeepBytes > 0 && k.size > uint64(limits.KeepBytes)/2:
		return often
	case limits.MaxAge > 0:
		return min(seldom, max(often, limits.MaxAge/margin))
	}
	return seldom
}

// look removes what is beyond the bounds, up to a step of it, and tells whether
// there is more.
func (k *Keeper) look(ctx context.Context) (more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	s, err := k.cfg.JS.Stream(ctx, k.cfg.Stream)
	if err != nil {
		return false, err
	}
	info := s.CachedInfo()
	k.size = info.State.Bytes
	k.cfg.Clock.Seen(info.State.LastTime)
	// A removal that broke off is finished. A mark that got lost, as another
	// replica has changed the stream at once, is written again.
	k.mark = max(k.mark, stream.RemovedBelow(info.Config))
	if k.mark > info.State.FirstSeq || k.mark > stream.RemovedBelow(info.Config) {
		return true, stream.Remove(ctx, k.cfg.JS, k.cfg.Stream, k.mark)
	}
	b, due := k.bounds(info.State)
	if !due {
		k.hold(false)
		return false, nil
	}
	if b.floor = info.State.LastSeq; k.cfg.Floor != nil {
		floor, err := k.cfg.Floor(ctx)
		if err != nil {
			return false, err
		}
		b.floor = min(b.floor, floor)
	}
	if b.floor < info.State.FirstSeq {
		k.hold(true)
		return false, nil
	}
	found, err := k.choose(ctx, &b)
	if err != nil {
		return false, fmt.Errorf("look for what is beyond the retention: %w", err)
	}
	k.hold(found.held)
	if len(found.seqs) == 0 {
		return false, nil
	}
	return found.more, k.remove(ctx, &found)
}

// bounds is what may be removed: what was stored before a time, and as many
// bytes, up to a sequence.
type bounds struct {
	before time.Time
	bytes  int64
	floor  uint64
}

// bounds returns what is beyond the bounds of a stream, and whether it is so
// much that it is to be removed now.
func (k *Keeper) bounds(st jetstream.StreamState) (b bounds, due bool) {
	if st.Msgs == 0 {
		return b, false
	}
	now := k.cfg.Clock.Now()
	if age := k.cfg.Limits.MaxAge; age > 0 {
		b.before = now.Add(-age)
		due = st.FirstTime.Before(b.before.Add(-min(age/margin, maxMargin)))
	}
	if size := k.cfg.Limits.KeepBytes; size > 0 && int64(st.Bytes) > size {
		b.bytes, due = int64(st.Bytes)-(size-size/margin), true
	}
	return b, due
}

func (k *Keeper) hold(held bool) {
	if held != k.held {
		if held {
			k.cfg.Log.Warn("messages are kept beyond their retention, as they have not been looked at yet", "stream", k.cfg.Stream)
		} else {
			k.cfg.Log.Info("no message is kept beyond its retention any more", "stream", k.cfg.Stream)
		}
	}
	k.held = held
	k.cfg.Metrics.held.WithLabelValues(k.cfg.Stream).Set(map[bool]float64{true: 1}[held])
}

// Reasons why a message is removed.
const (
	reasonAge  = "age"
	reasonSize = "size"
)

// chosen are the oldest messages of a stream, to be removed.
type chosen struct {
	seqs            []uint64
	oldest, newest  time.Time
	messages, bytes map[string]int64
	// held tells that more would be chosen if they had been looked at, more
	// that there are more than a step.
	held, more bool
}

// choose reads the heads of the oldest messages and returns those that are
// beyond the bounds. The first one that is not ends it, so that what remains is
// without holes.
func (k *Keeper) choose(ctx context.Context, b *bounds) (found chosen, err error) {
	found.messages, found.bytes = map[string]int64{}, map[string]int64{}
	c, err := k.cfg.JS.OrderedConsumer(ctx, k.cfg.Stream, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverAllPolicy, HeadersOnly: true})
	if err != nil {
		return found, err
	}
	msgs, err := c.Messages()
	if err != nil {
		return found, err
	}
	defer msgs.Stop()
	for left := b.bytes; ; {
		m, err := msgs.Next(jetstream.NextContext(ctx))
		if err != nil {
			return found, err
		}
		meta, err := m.Metadata()
		if err != nil {
			return found, err
		}
		reason := reasonAge
		if !meta.Timestamp.Before(b.before) {
			if reason = reasonSize; left <= 0 {
				return found, nil
			}
		}
		if meta.Sequence.Stream > b.floor {
			found.held = k.cfg.Floor != nil // otherwise it is newer than the look
			return found, nil
		}
		size := stored(m)
		left -= size
		found.add(meta, size, reason)
		if meta.NumPending == 0 {
			return found, nil
		}
		if len(found.seqs) >= step {
			found.more = true
			return found, nil
		}
	}
}

func (c *chosen) add(meta *jetstream.MsgMetadata, size int64, reason string) {
	if len(c.seqs) == 0 {
		c.oldest = meta.Timestamp
	}
	c.seqs, c.newest = append(c.seqs, meta.Sequence.Stream), meta.Timestamp
	c.messages[reason]++
	c.bytes[reason] += size
}

// stored returns what a message takes in its stream, of which only the headers
// are there: the record has 22 bytes before the subject and a hash of 8 at the
// end, and counts its headers' length in 4 more.
func stored(m jetstream.Msg) int64 {
	size := int64(22 + len(m.Subject()) + 8)
	if n, err := strconv.ParseInt(m.Headers().Get(nats.MsgSize), 10, 64); err == nil {
		size += n
	}
	own := 0
	for key, values := range m.Headers() {
		if key == nats.MsgSize {
			continue // the server adds it
		}
		for _, v := range values {
			own += len(key) + len(": \r\n") + len(v)
		}
	}
	if own > 0 {
		size += int64(4 + len("NATS/1.0\r\n\r\n") + own)
	}
	return size
}

// remove removes what was chosen.
func (k *Keeper) remove(ctx context.Context, c *chosen) error {
	if k.cfg.Removing != nil {
		k.cfg.Removing(ctx, c.seqs)
	}
	last := c.seqs[len(c.seqs)-1]
	if err := stream.Remove(ctx, k.cfg.JS, k.cfg.Stream, last+1); err != nil {
		return err
	}
	k.mark = last + 1
	for reason, n := range c.messages {
		k.cfg.Metrics.messages.WithLabelValues(k.cfg.Stream, reason).Add(float64(n))
		k.cfg.Metrics.bytes.WithLabelValues(k.cfg.Stream, reason).Add(float64(c.bytes[reason]))
		k.cfg.Log.Info("the oldest messages were removed, their retention has ended", "stream", k.cfg.Stream, "reason", reason, "messages", n,
			"bytes", c.bytes[reason], "to", last, "stored_from", c.oldest.UTC(), "stored_until", c.newest.UTC())
	}
	return nil
}

// AckFloor returns a Floor: what a durable consumer of the stream has
// acknowledged without a hole. Before the consumer exists nothing may be
// removed.
func AckFloor(js jetstream.JetStream, name, consumer string) func(context.Context) (uint64, error) {
	return func(ctx context.Context) (uint64, error) {
		c, err := js.Consumer(ctx, name, consumer)
		if errors.Is(err, jetstream.ErrConsumerNotFound) {
			return 0, nil
		} else if err != nil {
			return 0, fmt.Errorf("consumer %s of stream %s: %w", consumer, name, err)
		}
		return c.CachedInfo().AckFloor.Stream, nil
	}
}

// Follow calls drop with the sequence of a stream below which retention has
// removed all messages, at the start and whenever that has changed, until ctx
// ends. Where drop fails it is called again.
func Follow(ctx context.Context, js jetstream.JetStream, name string, log *slog.Logger, drop func(ctx context.Context, below uint64) error) {
	follow(ctx, js, name, log, seldom, drop)
}

func follow(ctx context.Context, js jetstream.JetStream, name string, log *slog.Logger, interval time.Duration, drop func(context.Context, uint64) error) {
	last := uint64(0)
	lifecycle.Repeat(ctx, interval, func() {
		if s, err := js.Stream(ctx, name); err == nil {
			if below := stream.RemovedBelow(s.CachedInfo().Config); below > last {
				if err := drop(ctx, below); err == nil {
					last = below
				} else if ctx.Err() == nil {
					log.Warn("what retention has removed is not dropped yet", "stream", name, "below", below, "error", err)
				}
			}
		} else if ctx.Err() == nil && !errors.Is(err, jetstream.ErrStreamNotFound) && !errors.Is(err, nats.ErrNoResponders) {
			log.Debug("look at the retention of a stream", "stream", name, "error", err)
		}
	})
}
