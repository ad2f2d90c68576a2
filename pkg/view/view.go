package view

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/semaphore"

	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/failpoint"
	"github.com/nightjar-edr/nightjar/pkg/store"
	"github.com/nightjar-edr/nightjar/pkg/tracing"
)

// ErrGap means that the stream is not the one the view was built from, or
// that messages are missing behind the view's position. The store must be
// deleted to build the view again from what the stream still holds.
var ErrGap = errors.New("gap between the view and its stream")

// Bounds of a group of messages that one transaction folds. A pull must have
// room for the largest message, or the server would never deliver that one.
const (
	maxGroup      = 256
	maxGroupBytes = 1 << 20
	// With Config.Pace.
	maxPacedGroup = 4096
	maxPacedBytes = 4 << 20
	pullBytes     = stream.MaxMessage + 4<<20
)

// Msg is a message of a stream.
type Msg struct {
	Subject string
	Header  nats.Header
	Data    []byte
	// Seq is the message's sequence in its stream, Time when it was stored.
	Seq  uint64
	Time time.Time
	// pending is how many messages followed it when it was delivered.
	pending uint64
}

// Deleted tells whether the message of a key-value bucket deletes its key.
func (m *Msg) Deleted() bool {
	op := m.Header.Get("KV-Operation")
	return op == "DEL" || op == "PURGE"
}

// Fold folds messages, in order, into a transaction. When the transaction is
// on stable storage the function it returned, if any, is called, and only
// then are readers told; there it may change what it keeps in memory. Fold
// may be called again with the same messages, or a first part of them, when a
// transaction has failed: before the commit it changes nothing but txn. A
// message that cannot be read must be logged and passed over by Fold; an
// error stops the view.
type Fold func(txn *badger.Txn, msgs []Msg) (committed func(), err error)

// Config describes a view.
type Config struct {
	// Name is unique within the store.
	Name string
	// Stream is folded, all of it or the subjects that match Filters.
	Stream  string
	Filters []string
	// Compacted says that the stream loses messages by design (a key-value
	// bucket), so that missing sequences are no gap.
	Compacted bool
	DB        *store.DB
	JS        jetstream.JetStream
	Log       *slog.Logger
	// Metrics receives the view's metrics, may be nil.
	Metrics *Metrics
	// Trace makes a span of each transaction that folds messages of recorded
	// traces; nil makes none.
	Trace *tracing.Tracer
	Fold  Fold
	// Removed returns the sequence up to which messages may have been removed
	// from the stream on purpose. Up to there, those that are missing are no
	// gap. May be nil.
	Removed func(ctx context.Context) (uint64, error)
	// CheckEvery is how often a running view makes sure that its stream is
	// still the same; 0 means 30 seconds.
	CheckEvery time.Duration
	// Pace is the least time between the beginnings of two transactions,
	// unless so much has come that one is full, or somebody waits for what has
	// come. What comes meanwhile is folded together.
	Pace time.Duration
	// Room, if not nil, tells why nothing may be written to the store at the
	// moment. The view waits meanwhile, and is not ready.
	Room func() error
}

const (
	// checkEvery is what CheckEvery is by default.
	checkEvery = 30 * time.Second
	// checkBehind is how often a view that is behind looks whether what it waits
	// for is still to come.
	checkBehind = 2 * time.Second
)

// position is what is kept in the store beside the folded facts.
type position struct {
	Stream  string    `json:"stream"`
	Created time.Time `json:"created"`
	// Seq is the sequence up to which everything is folded that the view
	// wants: that of the last message folded, or a later one behind which
	// nothing of interest was.
	Seq uint64 `json:"seq"`
}

// View folds one stream. Make it with New and run it with Run.
type View struct {
	cfg   Config
	key   []byte
	span  string
	pos   position
	ready atomic.Bool
	// folding is when the last transaction was begun.
	folding time.Time
	// committing is held while a transaction is made and committed.
	committing sync.Mutex
	// ended is the sequence below which messages are passed over, guarded by
	// committing.
	ended uint64
	// passed is where the stream began when it was last logged that messages
	// ended with their retention before the view came to them.
	passed uint64

	// hurry tells that somebody waits, who is not to wait for the pace.
	hurry chan struct{}

	mu      sync.Mutex
	seq     uint64
	waiters map[chan struct{}]uint64
	err     error
	// behind is the time up to which everything is folded while messages wait,
	// zero when none does.
	behind time.Time
}

// New reads the view's position from its store. It touches no stream yet.
func New(cfg Config) (*View, error) {
	if cfg.CheckEvery == 0 {
		cfg.CheckEvery = checkEvery
	}
	v := &View{cfg: cfg, key: positionKey(cfg.Name), span: "fold " + cfg.Stream, waiters: map[chan struct{}]uint64{}, hurry: make(chan struct{}, 1)}
	err := cfg.DB.View(func(txn *badger.Txn) error {
		item, err := txn.Get(v.key)
		if errors.Is(err, badger.ErrKeyNotFound) {
			return nil
		} else if err != nil {
			return err
		}
		return item.Value(func(b []byte) error { return json.Unmarshal(b, &v.pos) })
	})
	if err != nil {
		return nil, fmt.Errorf("view %s: read position: %w", cfg.Name, err)
	}
	v.seq = v.pos.Seq
	if cfg.Metrics != nil {
		cfg.Metrics.add(v)
	}
	return v, nil
}

// Ready tells whether the view has caught up with its stream since it was
// started and is not far behind now.
func (v *View) Ready() bool { return v.ready.Load() && v.Err() == nil }

// Err returns why the view stands still, nil while it runs.
func (v *View) Err() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.err
}

// Position returns the sequence of the last message that is folded.
func (v *View) Position() uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.seq
}

// Wait returns when the message with sequence seq, or a later one, is folded.
// Ready, which also looks at what is to come, may tell of it a moment later.
func (v *View) Wait(ctx context.Context, seq uint64) error {
	v.mu.Lock()
	if v.seq >= seq {
		v.mu.Unlock()
		return nil
	}
	ch := make(chan struct{})
	v.waiters[ch] = seq
	v.mu.Unlock()
	select {
	case v.hurry <- struct{}{}:
	default:
	}
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		v.mu.Lock()
		delete(v.waiters, ch)
		v.mu.Unlock()
		return fmt.Errorf("view %s: waiting for sequence %d: %w", v.cfg.Name, seq, ctx.Err())
	}
}

// WaitReady returns when the view has caught up for the first time.
func (v *View) WaitReady(ctx context.Context) error {
	for !v.Ready() {
		if err := v.Err(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("view %s: catching up: %w", v.cfg.Name, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

// Run folds until ctx ends, and then returns nil. It survives a lost
// connection. A gap makes it stand still until ctx ends; an error of the
// store or of Fold is returned.
func (v *View) Run(ctx context.Context) error {
	if _, err := stream.Await(ctx, v.cfg.JS, v.cfg.Stream); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("view %s: %w", v.cfg.Name, err)
	}
	for ctx.Err() == nil {
		err := v.follow(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errFold):
			v.stall(err)
			return fmt.Errorf("view %s: %w", v.cfg.Name, err)
		case errors.Is(err, ErrGap):
			v.stall(err)
			<-ctx.Done()
			return nil
		case err != nil:
			v.cfg.Log.Warn("view lost its stream, trying again", "view", v.cfg.Name, "error", err)
			v.ready.Store(false)
			select {
			case <-ctx.Done():
			case <-time.After(250 * time.Millisecond):
			}
		}
	}
	return nil
}

func (v *View) stall(err error) {
	// First, so that who sees the error sees it, too.
	if m := v.cfg.Metrics; m != nil && errors.Is(err, ErrGap) {
		m.gap.WithLabelValues(v.cfg.Name).Set(1)
	}
	v.mu.Lock()
	v.err = err
	v.mu.Unlock()
	v.ready.Store(false)
	v.cfg.Log.Error("view stands still", "view", v.cfg.Name, "stream", v.cfg.Stream, "error", err)
}

var errFold = errors.New("fold")

// follow reads the stream from the position on, until it fails, ctx ends, or
// the position can be brought forward by beginning anew.
func (v *View) follow(ctx context.Context) error {
	s, err := v.cfg.JS.Stream(ctx, v.cfg.Stream)
	if err != nil {
		return err
	}
	before := s.CachedInfo()
	if err := v.identify(ctx, before); err != nil {
		return err
	}
	cfg := jetstream.OrderedConsumerConfig{FilterSubjects: v.cfg.Filters, DeliverPolicy: jetstream.DeliverAllPolicy}
	if v.pos.Seq > 0 {
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, v.pos.Seq+1
	}
	c, err := v.cfg.JS.OrderedConsumer(ctx, v.cfg.Stream, cfg)
	if err != nil {
		return fmt.Errorf("consumer: %w", err)
	}
	info, err := c.Info(ctx)
	if err != nil {
		return fmt.Errorf("consumer: %w", err)
	}
	end, err := v.end(ctx, before)
	if err != nil {
		return err
	}
	if v.left(info.NumPending, end) == 0 {
		if err := v.advance(before.State.LastSeq); err != nil {
			return fmt.Errorf("%w: %w", errFold, err)
		}
	}
	v.lag(v.left(info.NumPending, end), time.Now()) // nobody knows the age of what waits
	msgs := make(chan Msg, maxGroup)
	room := semaphore.NewWeighted(pullBytes)
	failed := make(chan error, 1)
	reading, stop := context.WithCancel(ctx)
	defer stop()
	consume, err := c.Consume(func(m jetstream.Msg) {
		meta, err := m.Metadata()
		if err != nil {
			return // not a message of a stream
		}
		if room.Acquire(reading, weight(m.Data())) != nil {
			return
		}
		select {
		case msgs <- Msg{Subject: m.Subject(), Header: m.Headers(), Data: m.Data(), Seq: meta.Sequence.Stream, Time: meta.Timestamp, pending: meta.NumPending}:
		case <-reading.Done():
		}
	}, append(stream.Following(v.cfg.JS), jetstream.PullMaxMessagesWithBytesLimit(4*maxGroup, pullBytes), jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) {
		if errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, jetstream.ErrConsumerDeleted) || errors.Is(err, jetstream.ErrStreamNotFound) {
			select {
			case failed <- err:
			default:
			}
		}
	}))...)
	if err != nil {
		return fmt.Errorf("consume: %w", err)
	}
	defer consume.Stop()
	closed := consume.Closed() // each call makes a goroutine that waits
	check := time.NewTimer(v.untilCheck())
	defer check.Stop()
	idle := false
	var group []Msg
	for {
		group = group[:0]
		select {
		case <-check.C:
			check.Reset(v.untilCheck())
			if again, err := v.check(ctx, s, idle); again || err != nil {
				return err
			}
			idle = true
			continue
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-closed:
			return errors.New("the consumer was closed")
		case m := <-msgs:
			group = append(group, m)
			room.Release(weight(m.Data))
		}
		size := len(group[0].Data)
		for more := true; more && !v.full(len(group), size); {
			var m Msg
			if m, more = v.another(ctx, msgs, group[len(group)-1].Seq); more {
				group = append(group, m)
				size += len(m.Data)
				room.Release(weight(m.Data))
			}
		}
		idle = false
		if err := v.contiguous(ctx, s, group); err != nil {
			return err
		}
		if v.awaitRoom(ctx) != nil {
			return nil
		}
		v.folding = time.Now()
		v.wait(group[0].Time)
		if err := v.fold(group); err != nil {
			return fmt.Errorf("%w: %w", errFold, err)
		}
		last := &group[len(group)-1]
		v.lag(v.left(last.pending+uint64(len(msgs)), end), last.Time)
		if v.ready.Load() && last.pending > 0 && time.Since(last.Time) > time.Minute {
			v.ready.Store(false)
		}
	}
}

// full tells whether a group of n messages and size bytes is to be folded.
func (v *View) full(n, size int) bool {
	if v.cfg.Pace > 0 {
		return n >= maxPacedGroup || size >= maxPacedBytes
	}
	return n >= maxGroup || size >= maxGroupBytes
}

// another returns the next message that belongs to the group in hand: one that
// is there, or comes before the view may fold again. Where somebody waits for
// the group in hand it may fold at once.
func (v *View) another(ctx context.Context, msgs <-chan Msg, last uint64) (Msg, bool) {
	select {
	case m := <-msgs:
		return m, true
	default:
	}
	wait := v.cfg.Pace - time.Since(v.folding)
	if wait <= 0 {
		return Msg{}, false
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	for !v.awaited(last) {
		select {
		case m := <-msgs:
			return m, true
		case <-v.hurry: // somebody has begun to wait
		case <-t.C:
			return Msg{}, false
		case <-ctx.Done():
			return Msg{}, false
		}
	}
	return Msg{}, false
}

// awaited tells whether somebody waits for a message up to seq.
func (v *View) awaited(seq uint64) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, wanted := range v.waiters {
		if wanted <= seq {
			return true
		}
	}
	return false
}

// weight is what a message takes of the room for messages that wait to be
// folded. The largest message takes all of it.
func weight(data []byte) int64 { return min(int64(len(data)), pullBytes) }

// lag notes how much is still to come, and up to when everything is folded.
func (v *View) lag(pending uint64, until time.Time) {
	v.mu.Lock()
	v.behind = time.Time{}
	v.mu.Unlock()
	if pending > 0 {
		v.wait(until)
	}
	if m := v.cfg.Metrics; m != nil {
		m.lag.WithLabelValues(v.cfg.Name).Set(float64(pending))
	}
	if pending == 0 {
		v.ready.Store(true)
	}
}

// wait notes that messages since a time are to be folded, unless older ones are.
func (v *View) wait(since time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.behind.IsZero() {
		v.behind = since
	}
}

// fold commits a group, in halves when it is too big for one transaction.
func (v *View) fold(group []Msg) error {
	for len(group) > 0 && group[0].Seq <= v.pos.Seq {
		group = group[1:]
	}
	if len(group) == 0 {
		return nil
	}
	span := v.cfg.Trace.Join(context.Background(), len(group), func(i int) string { return group[i].Header.Get(tracing.Header) }, v.span)
	err := v.commit(group)
	if errors.Is(err, badger.ErrTxnTooBig) && len(group) > 1 {
		if err := v.fold(group[:len(group)/2]); err != nil {
			return err
		}
		return v.fold(group[len(group)/2:])
	}
	span.Text("nightjar.view", v.cfg.Name)
	span.Count("messaging.batch.message_count", len(group))
	span.End(err)
	return err
}

func (v *View) commit(group []Msg) error {
	v.committing.Lock()
	defer v.committing.Unlock()
	last, next, msgs := v.pos.Seq, v.pos, v.current(group)
	next.Seq = group[len(group)-1].Seq
	txn := v.cfg.DB.NewTransaction(true)
	defer txn.Discard()
	committed := func() {}
	if len(msgs) > 0 {
		fold, err := v.cfg.Fold(txn, msgs)
		if err != nil {
			return fmt.Errorf("messages %d to %d: %w", msgs[0].Seq, next.Seq, err)
		}
		if fold != nil {
			committed = fold
		}
	}
	if err := v.write(txn, next); err != nil {
		return err
	}
	failpoint.HitIn(failpoint.ViewBeforeCommit, v.cfg.Name)
	if err := txn.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	failpoint.HitIn(failpoint.ViewAfterCommit, v.cfg.Name)
	v.pos = next
	committed()
	if m := v.cfg.Metrics; m != nil {
		m.folded.WithLabelValues(v.cfg.Name).Add(float64(len(msgs)))
	}
	if n := len(group) - len(msgs); n > 0 {
		v.notSeen(n, last, group[n-1].Seq+1)
	}
	v.tell()
	return nil
}

// write puts a position into a transaction.
func (v *View) write(txn *badger.Txn, pos position) error {
	value, err := json.Marshal(pos)
	if err != nil {
		return err
	}
	return txn.Set(v.key, value)
}

// tell makes the position known to those who wait for it.
func (v *View) tell() {
	if m := v.cfg.Metrics; m != nil {
		m.position.WithLabelValues(v.cfg.Name).Set(float64(v.pos.Seq))
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.seq = v.pos.Seq
	for ch, seq := range v.waiters {
		if seq <= v.seq {
			close(ch)
			delete(v.waiters, ch)
		}
	}
}
