package intake

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/beat"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/failpoint"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

const (
	// moveAfter is how long batches wait in INTAKE for others of the same
	// endpoint, moveBytes how many bytes do not wait.
	moveAfter = 500 * time.Millisecond
	moveBytes = 4 << 20
	// maxJoined bounds, in bytes, the lines of a message that several batches become.
	maxJoined = message.MaxBatchBytes
	// retryAfter is the pause after something could not be moved.
	retryAfter = time.Second
	// adoptAfter is how long something lies in INTAKE that no process says to
	// have in hand, before it is moved. At a start others are given adoptGrace.
	adoptAfter = 30 * time.Second
	adoptGrace = time.Second
	// adoptBatches and adoptBytes bound what is read before it is moved.
	adoptBatches = 1000
	adoptBytes   = 8 << 20
	// sweepAfter is how long nothing is in hand before the files of INTAKE, in
	// which only deleted messages are left, are given back.
	sweepAfter = 2 * time.Second
	// lastTimeout bounds what is still moved when the process stops.
	lastTimeout = 3 * time.Second
)

// errNotMoved means that not everything in hand could be moved.
var errNotMoved = errors.New("not stored in EVENTS yet")

// pending is what is acknowledged and stands in INTAKE. The lock of the Intake
// guards it, and is held where add, arm and tell are called.
type pending struct {
	// todo has what is to be moved, by what can be one message.
	todo map[kind][]piece
	// stored has the messages of INTAKE that are in hand, bytes is the size
	// of what they hold.
	stored map[uint64]*stored
	bytes  int64
	// last is the last message of this process, purged up to where those of
	// this process are deleted.
	last, purged uint64
	// armed is when timer tells wake that there is something to do.
	armed time.Time
	timer *time.Timer
	wake  chan struct{}
	// dirty tells that INTAKE has files with nothing but what is deleted.
	dirty bool
	// unsure tells that a message may be in INTAKE that nobody has in hand,
	// unreadable that one is there that cannot be read and stays.
	unsure, unreadable bool
	// adopted tells that what was left in INTAKE was looked for.
	adopted bool
}

// kind is what batches have in common that can be one message.
type kind struct {
	endpoint, hostname, ip string
	generation             uint64
}

func kindOf(b *message.Joined) kind { return kind{b.Endpoint, b.Hostname, b.IP, b.Generation} }

// piece is a batch of a message of INTAKE.
type piece struct {
	batch message.Joined
	of    *stored
}

// stored is a message of INTAKE, left the number of its batches that are not
// moved. A foreign one was not written by this process.
type stored struct {
	seq     uint64
	left    int
	bytes   int64
	foreign bool
}

func newPending() pending {
	return pending{todo: map[kind][]piece{}, stored: map[uint64]*stored{}, wake: make(chan struct{}, 1)}
}

// add takes a message of INTAKE into hand.
func (q *Intake) add(seq uint64, batches []message.Joined, foreign bool) {
	s := &stored{seq: seq, left: len(batches), foreign: foreign}
	q.stored[seq] = s
	if !foreign {
		q.last = max(q.last, seq)
	}
	for _, b := range batches {
		k := kindOf(&b)
		q.todo[k] = append(q.todo[k], piece{b, s})
		s.bytes += int64(len(b.Text))
	}
	q.bytes += s.bytes
	if q.bytes >= moveBytes {
		q.tell()
	} else {
		q.arm(moveAfter)
	}
}

// arm has wake told after a time, if it is not told before.
func (q *Intake) arm(after time.Duration) {
	at := time.Now().Add(after)
	if !q.armed.IsZero() && q.armed.Before(at) {
		return
	}
	q.armed = at
	if q.timer == nil {
		q.timer = time.AfterFunc(after, func() {
			q.mu.Lock()
			defer q.mu.Unlock()
			q.tell()
		})
		return
	}
	q.timer.Reset(after)
}

func (q *Intake) tell() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// Run moves what is taken in until ctx ends, and then for a moment what is left.
// First it looks for what was left behind in INTAKE.
func (q *Intake) Run(ctx context.Context) {
	defer q.finish(context.WithoutCancel(ctx))
	q.takeOver(ctx)
	var seen uint64
	look := time.NewTimer(beat.Next(adoptAfter))
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-q.wake:
			q.move(ctx)
		case <-look.C:
			look.Reset(beat.Next(adoptAfter))
			end, err := q.look(ctx, seen)
			if err != nil {
				q.warn(ctx, "what was left in INTAKE cannot be looked for", err)
				continue
			}
			seen = end
		}
	}
}

// Ready returns nil once what was left in INTAKE was looked for and, unless
// EVENTS does not take it, moved.
func (q *Intake) Ready() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.adopted {
		return errors.New("moving what an earlier process took in")
	}
	return nil
}

// takeOver moves what was left in INTAKE when the process starts.
func (q *Intake) takeOver(ctx context.Context) {
	for end := uint64(0); ctx.Err() == nil; _ = lifecycle.Sleep(ctx, retryAfter) {
		var err error
		if end == 0 {
			if end, err = q.end(ctx); err == nil && end > 0 && !q.cfg.Alone {
				_ = lifecycle.Sleep(ctx, adoptGrace)
			}
		}
		if err == nil {
			err = q.adopt(ctx, end)
		}
		if err == nil || errors.Is(err, errNotMoved) {
			q.mu.Lock()
			q.adopted = true
			q.mu.Unlock()
			return
		}
		q.warn(ctx, "what was left in INTAKE cannot be looked for", err)
	}
}

// look moves what has been in INTAKE since the last look, which returned seen, and
// that nobody has moved. With nothing that may have been left it asks nobody.
func (q *Intake) look(ctx context.Context, seen uint64) (uint64, error) {
	q.mu.Lock()
	again := q.unsure || !q.cfg.Alone
	q.unsure = false
	q.mu.Unlock()
	if !again && seen == 0 {
		return 0, nil
	}
	end, err := q.end(ctx)
	if err == nil {
		err = q.adopt(ctx, seen)
	}
	if err != nil && !errors.Is(err, errNotMoved) {
		q.mu.Lock()
		q.unsure = true
		q.mu.Unlock()
		return seen, err
	}
	if !again {
		end = 0
	}
	return end, nil
}

// Clear returns when nothing is in INTAKE any more that was there at the call.
func (q *Intake) Clear(ctx context.Context) error {
	end, err := q.end(ctx)
	for err == nil && end > 0 {
		var s jetstream.Stream
		if s, err = q.intake(ctx); err == nil && s.CachedInfo().State.FirstSeq > end {
			return nil
		}
		if err == nil {
			err = lifecycle.Sleep(ctx, moveAfter/4)
		}
	}
	return err
}

// intake looks at the stream. One without messages begins behind its last one.
func (q *Intake) intake(ctx context.Context) (jetstream.Stream, error) {
	s, err := q.cfg.JS.Stream(ctx, stream.Intake)
	if err != nil {
		return nil, fmt.Errorf("look at stream %s: %w", stream.Intake, err)
	}
	return s, nil
}

// end returns the last sequence of the stream, 0 when nothing is in it.
func (q *Intake) end(ctx context.Context) (uint64, error) {
	s, err := q.intake(ctx)
	if err != nil || s.CachedInfo().State.Msgs == 0 {
		return 0, err
	}
	return s.CachedInfo().State.LastSeq, nil
}

// adopt moves what stands in INTAKE up to end and is not in hand. The error is
// errNotMoved when all of that is in hand and cannot be moved now.
func (q *Intake) adopt(ctx context.Context, end uint64) error {
	if end == 0 {
		return nil
	}
	s, err := q.intake(ctx)
	if err != nil {
		return err
	}
	messages, batches, size := 0, 0, 0
	moved := true
	for seq := uint64(1); seq <= end; seq++ {
		m, err := s.GetMsg(ctx, seq, jetstream.WithGetMsgSubject(subject.AllIntake))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			break
		} else if err != nil {
			return fmt.Errorf("read stream %s from %d: %w", stream.Intake, seq, err)
		}
		if seq = m.Sequence; seq > end {
			break
		}
		failpoint.Hit(failpoint.IntakeBeforeAdopt)
		list, err := message.ParseIntake(m.Header, m.Data)
		if err != nil {
			q.mu.Lock()
			q.unreadable = true
			q.mu.Unlock()
			q.metrics.unreadable.Inc()
			q.cfg.Log.Error("message cannot be read, it stays", "stream", stream.Intake, "sequence", seq, "error", err)
			continue
		}
		q.mu.Lock()
		if _, inHand := q.stored[seq]; !inHand {
			q.add(seq, list, m.Subject != subject.Intake(q.cfg.Gateway))
			messages, batches, size = messages+1, batches+len(list), size+len(m.Data)
		}
		q.mu.Unlock()
		if batches >= adoptBatches || size >= adoptBytes {
			moved = q.move(ctx) && moved
			batches, size = 0, 0
		}
	}
	if messages == 0 {
		return nil
	}
	if moved = q.move(ctx) && moved; !moved {
		return errNotMoved
	}
	q.cfg.Log.Info("moved what was left by another process", "from", stream.Intake, "to", stream.Events, "messages", messages)
	return nil
}

// move moves what is to be moved, and deletes from INTAKE what has been. It tells
// whether all of it went well; what did not is tried again.
func (q *Intake) move(ctx context.Context) bool {
	q.mu.Lock()
	todo := q.todo
	q.todo, q.armed = map[kind][]piece{}, time.Time{}
	quiet := len(q.stored) == 0
	q.mu.Unlock()
	if quiet {
		q.sweep(ctx)
		return true
	}
	failpoint.Hit(failpoint.IntakeBeforeMove)
	var on sync.WaitGroup
	var failed error
	for k, pieces := range todo {
		for len(pieces) > 0 {
			n := together(pieces)
			group := pieces[:n:n]
			pieces = pieces[n:]
			if k.generation < q.cfg.Generation(k.endpoint) {
				q.settle(group, nil) // what is removed need not be stored
				continue
			}
			on.Add(1)
			settled := func(_ *jetstream.PubAck, err error) {
				defer on.Done()
				q.settle(group, err)
				if err != nil {
					q.mu.Lock()
					failed = err
					q.mu.Unlock()
				}
			}
			m, err := joined(group)
			if err == nil {
				err = q.cfg.Publish(m, settled)
			}
			if err != nil {
				settled(nil, err)
			}
		}
	}
	on.Wait()
	if failed != nil {
		q.warn(ctx, "what was taken in cannot be moved, trying again", fmt.Errorf("%w: %w", errNotMoved, failed))
		q.mu.Lock()
		q.directUntil = time.Now().Add(2 * retryAfter) // until the next try has ended
		q.arm(retryAfter)
		q.mu.Unlock()
	}
	failpoint.Hit(failpoint.IntakeAfterMove)
	if err := q.clean(ctx); err != nil {
		q.warn(ctx, "what was moved cannot be deleted, trying again", err)
		q.mu.Lock()
		q.arm(retryAfter)
		q.mu.Unlock()
	}
	return failed == nil
}

// together returns how many of the pieces at the head become one message.
func together(pieces []piece) int {
	lines, size := 0, 0
	for n := range pieces {
		lines, size = lines+pieces[n].batch.Count, size+pieces[n].batch.Size()
		if n > 0 && (lines > message.MaxBatchEvents || size > maxJoined) {
			return n
		}
	}
	return len(pieces)
}

func joined(group []piece) (*nats.Msg, error) {
	batches := make([]message.Joined, len(group))
	for i := range group {
		batches[i] = group[i].batch
	}
	return message.Join(batches)
}

// settle notes what became of pieces.
func (q *Intake) settle(group []piece, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, p := range group {
		if err == nil {
			p.of.left--
			continue
		}
		k := kindOf(&p.batch)
		q.todo[k] = append(q.todo[k], p)
	}
}

// clean deletes from INTAKE what is moved.
func (q *Intake) clean(ctx context.Context) error {
	q.mu.Lock()
	upTo := q.last
	var gone []*stored
	for seq, s := range q.stored {
		switch {
		case s.left == 0:
			gone = append(gone, s)
		case !s.foreign:
			upTo = min(upTo, seq-1)
		}
	}
	own := upTo > q.purged
	q.mu.Unlock()
	if len(gone) == 0 {
		return nil
	}
	s, err := q.intake(ctx)
	if err != nil {
		return err
	}
	if own {
		if err := s.Purge(ctx, jetstream.WithPurgeSubject(subject.Intake(q.cfg.Gateway)), jetstream.WithPurgeSequence(upTo+1)); err != nil {
			return fmt.Errorf("purge stream %s up to %d: %w", stream.Intake, upTo, err)
		}
	}
	for _, g := range gone {
		if !g.foreign {
			continue
		}
		if err := stream.Drop(ctx, s, g.seq); err != nil {
			return fmt.Errorf("delete message %d of stream %s: %w", g.seq, stream.Intake, err)
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.dirty = true
	q.purged = max(q.purged, upTo)
	for _, g := range gone {
		if g.foreign || g.seq <= upTo {
			delete(q.stored, g.seq)
			q.bytes -= g.bytes
		}
	}
	if len(q.stored) == 0 {
		q.arm(sweepAfter)
	}
	return nil
}

// sweep gives the files of INTAKE back, in which only deleted messages are left,
// where no other process writes to them. JetStream would keep the last one. It is
// not done where a message stays that cannot be read.
func (q *Intake) sweep(ctx context.Context) {
	q.mu.Lock()
	dirty, upTo := q.dirty && !q.unreadable, q.purged
	q.dirty = false
	q.mu.Unlock()
	if !dirty || !q.cfg.Alone {
		return
	}
	s, err := q.intake(ctx)
	if err == nil {
		err = s.Purge(ctx, jetstream.WithPurgeSequence(upTo+1))
	}
	if err != nil {
		q.warn(ctx, "the files of INTAKE are not given back now", err)
	}
}

// finish moves what is left when the process stops. What cannot be moved now is
// moved by the next one.
func (q *Intake) finish(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lastTimeout)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for left := true; left && ctx.Err() == nil; {
			q.mu.Lock()
			left = len(q.todo) > 0
			q.mu.Unlock()
			if left && !q.move(ctx) {
				_ = lifecycle.Sleep(ctx, retryAfter/4)
			}
		}
	}()
	select {
	case <-done:
	case <-ctx.Done(): // an acknowledgement may take longer
	}
}

// warn tells of a failure, unless it comes from being stopped.
func (q *Intake) warn(ctx context.Context, what string, err error) {
	if ctx.Err() == nil {
		q.metrics.failures.Inc()
		q.cfg.Log.Warn(what, "error", err)
	}
}
