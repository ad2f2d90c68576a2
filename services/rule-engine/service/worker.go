package ruleengine

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/failpoint"
	"github.com/nightjar-edr/nightjar/pkg/tracing"
	"github.com/nightjar-edr/nightjar/services/rule-engine/internal/detect"
)

// How failures are dealt with.
const (
	// maxAttempts is how often work on a batch may end in a panic, or with the
	// process, before it becomes a dead letter.
	maxAttempts = 5
	// publishTimeout bounds the wait for the acknowledgement of alerts.
	publishTimeout = 15 * time.Second
	// gatherAlerts is how long an alert waits for others, to be written with them,
	// while hundreds come in a second.
	gatherAlerts = 250 * time.Millisecond
	// maxDelay bounds the time until a failed batch is tried again.
	maxDelay = 30 * time.Second
)

var (
	errPanic  = errors.New("the engine panicked")
	errPoison = errors.New("batch cannot be worked on")
)

// worker works on one batch after the other.
type worker struct {
	w   *walk
	s   *Service
	buf []byte
	// snap is the rule set of the batch in hand, detector made of it.
	snap     *snapshot
	detector *detect.Worker
	// span is that of the batch in hand, nil for none.
	span *tracing.Span
}

func newWorker(w *walk) *worker { return &worker{w: w, s: w.s} }

func (wk *worker) run(ctx context.Context) {
	for m := range wk.w.jobs {
		wk.batch(ctx, m)
	}
}

// batch works on one batch up to the publishing of its alerts, and leaves
// waiting for their acknowledgement to another goroutine.
func (wk *worker) batch(ctx context.Context, m jetstream.Msg) {
	began := time.Now()
	meta, err := m.Metadata()
	if err != nil {
		wk.w.release(m)
		wk.s.cfg.Log.Error("message without metadata", "subject", m.Subject(), "error", err)
		return
	}
	ctx, wk.span = wk.s.cfg.Bus.Trace.Continue(ctx, m.Headers().Get(tracing.Header), "detect", tracing.Consumer)
	wk.span.Endpoint(subject.Endpoint(m.Subject()))
	out, err := wk.attempt(m, meta)
	if out != nil {
		wk.span.Count("nightjar.events", out.events)
		wk.span.Count("nightjar.alerts", len(out.alerts))
	}
	wk.span.End(err)
	switch {
	case errors.Is(err, errPoison):
		out = &outcome{letters: []*message.DeadLetter{poison(m, meta, err)}}
	case err != nil:
		wk.w.retry(m, meta, err)
		return
	}
	room := min(int64(len(out.alerts)), maxOutstanding)
	if err := wk.w.room.Acquire(ctx, room); err != nil {
		wk.w.retry(m, meta, err)
		return
	}
	failpoint.Hit(failpoint.AlertsBeforePublish)
	var span *tracing.Span
	if len(out.alerts) > 0 {
		ctx, span = wk.s.cfg.Bus.Trace.Child(ctx, "publish "+stream.Alerts, tracing.Producer)
		span.Count("messaging.batch.message_count", len(out.alerts))
	}
	futures, err := wk.publish(ctx, out)
	if err != nil {
		span.End(err)
		wk.w.room.Release(room)
		wk.w.retry(m, meta, err)
		return
	}
	wk.w.settling.Go(func() {
		defer wk.w.room.Release(room)
		err := wk.w.settle(out, futures)
		span.End(err)
		if err != nil {
			wk.w.retry(m, meta, err)
			return
		}
		wk.w.finish(m, meta, out, began)
	})
}

// attempt detects in a batch. A batch that was delivered before is worked on
// alone, and the attempt is on stable storage before it begins: should it take
// the process with it, the next attempt knows.
func (wk *worker) attempt(m jetstream.Msg, meta *jetstream.MsgMetadata) (*outcome, error) {
	seq := meta.Sequence.Stream
	if meta.NumDelivered <= 1 {
		out, err := wk.guarded(m)
		if errors.Is(err, errPanic) {
			if err := wk.s.setAttempts(seq, 1); err != nil {
				return nil, err
			}
		}
		return out, err
	}
	wk.w.suspects.Lock()
	defer wk.w.suspects.Unlock()
	n, err := wk.s.attempts(seq)
	if err != nil {
		return nil, err
	}
	if n >= maxAttempts {
		return nil, fmt.Errorf("%w: %d attempts ended in a panic or with the process", errPoison, n)
	}
	if err := wk.s.setAttempts(seq, n+1); err != nil {
		return nil, err
	}
	out, err := wk.guarded(m)
	if errors.Is(err, errPanic) {
		return nil, err
	}
	return out, errors.Join(err, wk.s.setAttempts(seq, n))
}

// guarded turns a panic into an error of this batch.
func (wk *worker) guarded(m jetstream.Msg) (out *outcome, err error) {
	defer func() {
		if p := recover(); p != nil {
			wk.detector, wk.snap = nil, nil
			wk.s.metrics.errors.WithLabelValues("panic").Inc()
			wk.s.cfg.Log.Error("engine panicked on a batch", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			out, err = nil, errPanic
		}
	}()
	b, buf, err := message.ParseBatch(m.Subject(), m.Headers(), m.Data(), wk.buf)
	wk.buf = buf
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errPoison, err)
	}
	if b.Generation < wk.s.removals.Generation(b.Endpoint) {
		wk.s.metrics.removed.Inc()
		return &outcome{}, nil
	}
	if cur := wk.s.rules.current.Load(); cur != wk.snap {
		wk.snap, wk.detector = cur, cur.set.NewWorker()
	}
	if wk.span != nil {
		b.TraceParent = wk.span.Parent()
	}
	return wk.examine(&b)
}

// publish sends the alerts and dead letters of a batch, and returns where their
// acknowledgements will come.
func (wk *worker) publish(ctx context.Context, out *outcome) ([]future, error) {
	js := wk.s.cfg.Bus.JS
	futures := make([]future, 0, len(out.alerts))
	for _, a := range out.alerts {
		f, err := wk.s.alerts.PublishMsgAsync(a.msg)
		if errors.Is(err, nats.ErrMaxPayload) {
			out.letters = append(out.letters, a.letter())
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("publish alert: %w", err)
		}
		futures = append(futures, future{alert: a, ack: f})
		failpoint.Hit(failpoint.AlertsMidPublish)
	}
	for _, l := range out.letters {
		ctx, cancel := context.WithTimeout(ctx, publishTimeout)
		ack, err := js.PublishMsg(ctx, l.Msg())
		cancel()
		if err != nil {
			return nil, fmt.Errorf("publish dead letter: %w", err)
		}
		if !ack.Duplicate {
			wk.s.metrics.deadLetters.WithLabelValues(l.Reason).Inc()
		}
		wk.s.cfg.Log.Warn("dead letter", "endpoint", l.Endpoint, "reason", l.Reason, "detail", l.Detail)
	}
	return futures, nil
}

// future is an alert whose acknowledgement is awaited.
type future struct {
	alert *raisedAlert
	ack   jetstream.PubAckFuture
}

// settle waits until all alerts are on stable storage.
func (w *walk) settle(out *outcome, futures []future) error {
	limit := time.NewTimer(publishTimeout)
	defer limit.Stop()
	var failure error
	for _, f := range futures {
		select {
		case ack := <-f.ack.Ok():
			w.s.published.add(f.alert.key, ack.Sequence)
			if ack.Duplicate {
				out.repeated++
			} else {
				w.s.metrics.alerts.WithLabelValues(string(f.alert.severity), string(f.alert.origin)).Inc()
			}
			w.refuse(nil)
		case err := <-f.ack.Err():
			var api *jetstream.APIError
			if errors.As(err, &api) {
				w.s.metrics.refused.Inc()
				w.refuse(err)
			}
			failure = fmt.Errorf("publish alert: %w", err)
		case <-limit.C:
			return fmt.Errorf("publish alert: no acknowledgement within %s", publishTimeout)
		}
	}
	return failure
}

// finish has a batch acknowledged and counts it. One that was delivered before is
// acknowledged at once: it is not to be looked at a third time.
func (w *walk) finish(m jetstream.Msg, meta *jetstream.MsgMetadata, out *outcome, began time.Time) {
	w.release(m)
	failpoint.Hit(failpoint.AlertsBeforeAck)
	if meta.NumDelivered <= 1 {
		w.acks.add(m)
	} else {
		if !w.ack(m) {
			return
		}
		if err := w.s.setAttempts(meta.Sequence.Stream, 0); err != nil {
			w.s.cfg.Log.Warn("attempts on a batch stay stored until they expire", "error", err)
		}
	}
	if time.Since(meta.Timestamp) < fresh {
		w.caughtUp.Store(true)
	}
	w.s.metrics.batches.Inc()
	w.s.metrics.events.Add(float64(out.events))
	w.s.metrics.filtered.Add(float64(out.filtered))
	w.s.metrics.repeated.Add(float64(out.repeated))
	w.s.metrics.batchDuration.Observe(time.Since(began).Seconds())
}

// retry hands a batch back, to come again after a while.
func (w *walk) retry(m jetstream.Msg, meta *jetstream.MsgMetadata, err error) {
	w.release(m)
	w.s.metrics.retries.Inc()
	delay := maxDelay
	if n := meta.NumDelivered; n < 10 {
		delay = min(maxDelay, 100*time.Millisecond<<n)
	}
	w.s.cfg.Log.Warn("batch is tried again", "sequence", meta.Sequence.Stream, "deliveries", meta.NumDelivered, "delay", delay, "error", err)
	if err := m.NakWithDelay(delay); err != nil {
		w.s.cfg.Log.Debug("batch comes again when its time is over", "error", err)
	}
}

// poison makes the dead letter of a whole batch.
func poison(m jetstream.Msg, meta *jetstream.MsgMetadata, cause error) *message.DeadLetter {
	content := m.Data()
	if lines, err := message.Decompress(nil, content); err == nil {
		content = lines
	}
	return &message.DeadLetter{
		Endpoint: subject.Endpoint(m.Subject()), Reason: message.ReasonPoison, Received: meta.Timestamp, Generation: message.GenerationOf(m.Headers()),
		Detail: fmt.Sprintf("sequence %d of stream %s: %v", meta.Sequence.Stream, meta.Stream, cause),
		Line:   content[:min(len(content), message.DeadLetterHead)], Size: int64(len(content)), SHA256: sha256.Sum256(content),
	}
}
