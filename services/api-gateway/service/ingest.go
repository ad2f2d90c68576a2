package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sync/semaphore"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/failpoint"
	"github.com/nightjar-edr/nightjar/pkg/tracing"
	"github.com/nightjar-edr/nightjar/services/api-gateway/internal/lines"
)

const (
	// netBuffer is read from the network at once, lineBuffer is what most
	// lines fit into.
	netBuffer  = 32 << 10
	lineBuffer = 64 << 10
	// firstBatch is the size at which the buffer of a batch begins, keptBatch
	// the largest that is kept for the next request.
	firstBatch = 64 << 10
	keptBatch  = 256 << 10
	// baseMemory is what a request uses before its buffers grow; the rest
	// is what inflating needs.
	baseMemory = netBuffer + lineBuffer + firstBatch + 64<<10
	// memoryPatience is how long a request waits for memory.
	memoryPatience = 5 * time.Second
	// ratioAfter and maxRatio: beyond so many inflated bytes a body may not
	// be more than maxRatio times as large as what was sent.
	ratioAfter = 16 << 20
	maxRatio   = 200
)

// Reasons for which ingest is refused, as the metric has them.
const (
	refusedFull      = "full"
	refusedBusy      = "busy"
	refusedPublish   = "publish"
	refusedMalformed = "malformed"
	refusedTooLarge  = "too-large"
	refusedBroken    = "broken"
)

// refusals are all of them.
var refusals = []string{refusedFull, refusedBusy, refusedPublish, refusedMalformed, refusedTooLarge, refusedBroken}

var (
	errBusy     = errors.New("no memory for more events at the moment")
	errInflated = errors.New("body inflates beyond its limit")
	errFull     = errors.New("the manager cannot store more events")
)

// sender is the endpoint that a body comes from.
type sender struct {
	uuid, hostname, ip string
}

// ingester takes in the bodies of POST /logs.
type ingester struct {
	pub         *publisher
	memory      *semaphore.Weighted
	cpu         chan struct{}
	full        func() error
	trace       *tracing.Tracer
	generation  func(endpoint string) uint64
	maxInflated int64
	metrics     *metrics

	buffers sync.Pool
}

// buffers are what a request needs until its lines are handed over.
type buffers struct {
	network, text *bufio.Reader
	inflater      gzip.Reader
	batch         []byte
	// times are those of the events in batch.
	times []time.Time
}

func newBuffers() any {
	return &buffers{network: bufio.NewReaderSize(nil, netBuffer), text: bufio.NewReaderSize(nil, lineBuffer), batch: make([]byte, 0, firstBatch)}
}

func newIngester(pub *publisher, cfg *Config, generation func(endpoint string) uint64, m *metrics) *ingester {
	return &ingester{
		pub: pub, memory: semaphore.NewWeighted(cfg.IngestMemory), cpu: make(chan struct{}, cfg.IngestWorkers),
		full: cfg.Full, generation: generation, trace: cfg.Bus.Trace, maxInflated: cfg.MaxInflated, metrics: m,
		buffers: sync.Pool{New: newBuffers},
	}
}

// receive stores every line of a body and returns nil when all of them are on
// stable storage. Its errors are of package fault, or errNotGzip.
func (in *ingester) receive(ctx context.Context, from sender, body io.Reader, zipped bool) error {
	reason, err := in.run(ctx, from, body, zipped)
	if err != nil {
		in.metrics.refused.WithLabelValues(reason).Inc()
	}
	return err
}

// run does the work of receive and gives the reason of a refusal, too.
func (in *ingester) run(ctx context.Context, from sender, body io.Reader, zipped bool) (string, error) {
	if err := in.full(); err != nil {
		return refusal(fmt.Errorf("%w: %w", errFull, err))
	}
	f := in.pub.flight()
	err := in.take(ctx, f, from, body, zipped)
	if err == nil {
		err = f.wait(ctx)
	}
	if err != nil {
		return refusal(err)
	}
	failpoint.Hit(failpoint.EventsBeforeReply)
	return "", nil
}

// take hands every line of a body over to be stored. What it needs for that is
// free again when it returns, while acknowledgements may be outstanding.
func (in *ingester) take(ctx context.Context, f *flight, from sender, body io.Reader, zipped bool) error {
	mem := &allowance{from: in.memory}
	defer mem.release()
	if err := mem.wait(ctx, baseMemory); err != nil {
		return err
	}
	work := &slot{ctx: ctx, free: in.cpu}
	defer work.release()
	buf := in.borrow(mem)
	defer in.giveBack(buf)
	counted := &counter{r: body, slot: work}
	defer func() { in.metrics.bytes.Add(float64(counted.n)) }()
	buf.network.Reset(counted)
	// Most bodies are here as a whole before the CPU is asked for.
	if _, err := buf.network.Peek(netBuffer); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := work.acquire(); err != nil {
		return err
	}
	var text io.Reader = buf.network
	if zipped {
		if err := openGzip(&buf.inflater, buf.network); err != nil {
			return err
		}
		text = &inflated{r: &buf.inflater, packed: &counted.n, max: in.maxInflated}
	}
	buf.text.Reset(text)
	return in.batcher(ctx, f, from, mem, work, buf).fill(ctx)
}

// borrow returns buffers. One that grew in the hands of another request is paid
// for again, or replaced.
func (in *ingester) borrow(mem *allowance) *buffers {
	buf := in.buffers.Get().(*buffers)
	if grown := cap(buf.batch) - firstBatch; grown < 0 || grown > 0 && !mem.try(int64(grown)) {
		buf.batch = make([]byte, 0, firstBatch)
	}
	return buf
}

// giveBack keeps buffers for the next request.
func (in *ingester) giveBack(buf *buffers) {
	buf.network.Reset(nil)
	buf.text.Reset(nil)
	buf.times = buf.times[:0]
	if buf.batch = buf.batch[:0]; cap(buf.batch) > keptBatch {
		buf.batch = nil
	}
	in.buffers.Put(buf)
}

// refusal sorts an error: the reason for the metric, and the error for the
// client.
func refusal(err error) (string, error) {
	switch {
	case errors.Is(err, errFull):
		return refusedFull, fault.New(fault.Unavailable, "%v", err)
	case errors.Is(err, errBusy):
		return refusedBusy, fault.New(fault.Unavailable, "%v", err)
	case errors.Is(err, errNotStored):
		return refusedPublish, fault.New(fault.Unavailable, "%v", err)
	case errors.Is(err, errNotGzip):
		return refusedMalformed, errNotGzip
	case errors.Is(err, errInflated):
		return refusedTooLarge, fault.New(fault.TooLarge, "%v", err)
	case errors.Is(err, errGzip), errors.Is(err, io.ErrUnexpectedEOF):
		return refusedMalformed, fault.New(fault.Invalid, "body breaks off or is damaged: %v", err)
	}
	return refusedBroken, fault.New(fault.Invalid, "body cannot be read: %v", err)
}

// batcher cuts lines into batches and publishes them.
type batcher struct {
	in     *ingester
	mem    *allowance
	work   *slot
	flight *flight
	meta   message.Batch
	*buffers
	count int
}

func (in *ingester) batcher(ctx context.Context, f *flight, from sender, mem *allowance, work *slot, buf *buffers) *batcher {
	// Nanoseconds would be three digits more in every message.
	received := time.Now().Truncate(time.Microsecond)
	return &batcher{
		in: in, mem: mem, work: work, flight: f, buffers: buf,
		meta: message.Batch{Endpoint: from.uuid, Hostname: from.hostname, IP: from.ip, Received: received, TraceParent: tracing.Parent(ctx)},
	}
}

// fill takes in every line.
func (b *batcher) fill(ctx context.Context) error {
	r := lines.NewReader(b.text, lines.Limits{
		Line: message.MaxLine, Head: message.DeadLetterHead,
		Grow: func(n int) error {
			b.work.release()
			if err := b.mem.wait(ctx, int64(n)); err != nil {
				return err
			}
			return b.work.acquire()
		},
	})
	for {
		if err := b.work.acquire(); err != nil {
			return err
		}
		line, long, err := r.Next()
		switch {
		case errors.Is(err, io.EOF):
			return b.flush(ctx)
		case err != nil:
			return err
		case long != nil:
			err = b.letter(ctx, &message.DeadLetter{
				Reason: message.ReasonTooLong, Line: long.Head, Size: long.Size, SHA256: long.SHA256,
				Detail: fmt.Sprintf("the line has %d bytes, at most %d are accepted", long.Size, message.MaxLine),
			})
		default:
			err = b.add(ctx, line)
		}
		if err != nil {
			return err
		}
	}
}

// add takes in a line that is an event or a dead letter.
func (b *batcher) add(ctx context.Context, line []byte) error {
	info, err := event.Scan(line)
	if err != nil {
		return b.letter(ctx, &message.DeadLetter{
			Reason: deadReason(err), Detail: err.Error(), Line: bytes.Clone(line), Size: int64(len(line)), SHA256: sha256.Sum256(line),
		})
	}
	size := len(line) + 1
	if b.count == message.MaxBatchEvents || (b.count > 0 && len(b.batch)+size > message.MaxBatchBytes) || !b.grow(size) {
		if err := b.flush(ctx); err != nil {
			return err
		}
	}
	if size > cap(b.batch)-len(b.batch) {
		b.times = append(b.times, info.Time)
		return b.alone(ctx, line)
	}
	b.batch = append(append(b.batch, line...), '\n')
	b.times = append(b.times, info.Time)
	b.count++
	return nil
}

// alone publishes a line that the buffer of the batch cannot take.
func (b *batcher) alone(ctx context.Context, line []byte) error {
	size := len(line) + 1
	b.work.release()
	if err := b.mem.wait(ctx, int64(size)); err != nil {
		return err
	}
	defer b.mem.give(int64(size))
	if err := b.work.acquire(); err != nil {
		return err
	}
	b.count = 1
	joined := append(make([]byte, 0, size), line...)
	return b.publish(ctx, append(joined, '\n'))
}

// grow makes room in the buffer for size more bytes, if there is memory.
func (b *batcher) grow(size int) bool {
	need := len(b.batch) + size
	if need <= cap(b.batch) {
		return true
	}
	larger := min(max(2*cap(b.batch), need), message.MaxBatchBytes)
	if larger < need || !b.mem.try(int64(larger-cap(b.batch))) {
		return false
	}
	grown := make([]byte, len(b.batch), larger)
	copy(grown, b.batch)
	b.batch = grown
	return true
}

func (b *batcher) flush(ctx context.Context) error {
	if b.count == 0 {
		return nil
	}
	err := b.publish(ctx, b.batch)
	b.batch = (b.batch)[:0]
	return err
}

// publish sends joined lines, b.count of them, as one message. The CPU is given
// back.
func (b *batcher) publish(ctx context.Context, joined []byte) error {
	if err := b.in.full(); err != nil {
		return fmt.Errorf("%w: %w", errFull, err)
	}
	ctx, span := b.in.trace.Child(ctx, "publish "+stream.Events, tracing.Producer)
	b.meta.Generation = b.in.generation(b.meta.Endpoint)
	batch := b.meta
	batch.Times = b.times
	if span != nil {
		batch.TraceParent = span.Parent()
		span.Endpoint(batch.Endpoint)
		span.Count("messaging.batch.message_count", b.count)
	}
	m := message.Joined{Batch: batch, Text: joined, Count: b.count}
	count := float64(b.count)
	b.count, b.times = 0, b.times[:0]
	b.work.release()
	failpoint.Hit(failpoint.EventsBeforePublish)
	err := b.flight.batch(ctx, m, func(err error) {
		span.End(err)
		if err == nil {
			b.in.metrics.events.Add(count)
			b.in.metrics.batches.Inc()
		}
	})
	failpoint.Hit(failpoint.EventsAfterPublish)
	if err != nil {
		span.End(err)
	}
	return err
}

// letter publishes a dead letter. The CPU is given back.
func (b *batcher) letter(ctx context.Context, d *message.DeadLetter) error {
	d.Endpoint, d.Received, d.Generation = b.meta.Endpoint, b.meta.Received, b.in.generation(b.meta.Endpoint)
	b.work.release()
	failpoint.Hit(failpoint.LetterBeforePublish)
	return b.flight.letter(ctx, d.Msg(), func(err error) {
		if err == nil {
			b.in.metrics.letters.WithLabelValues(d.Reason).Inc()
		}
	})
}

func deadReason(err error) string {
	switch {
	case errors.Is(err, event.ErrTooDeep):
		return message.ReasonTooDeep
	case errors.Is(err, event.ErrNotObject):
		return message.ReasonNotObject
	}
	return message.ReasonNotJSON
}

// allowance is the memory that one request has taken from the common budget.
type allowance struct {
	from *semaphore.Weighted
	n    int64
}

// wait takes n bytes, or returns errBusy when they do not come free in time.
func (a *allowance) wait(ctx context.Context, n int64) error {
	if a.try(n) {
		return nil
	}
	patient, cancel := context.WithTimeout(ctx, memoryPatience)
	defer cancel()
	if err := a.from.Acquire(patient, n); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return errBusy
	}
	a.n += n
	return nil
}

// try takes n bytes if they are free.
func (a *allowance) try(n int64) bool {
	ok := a.from.TryAcquire(n)
	if ok {
		a.n += n
	}
	return ok
}

// give gives n bytes back.
func (a *allowance) give(n int64) {
	a.from.Release(n)
	a.n -= n
}

// release gives everything back.
func (a *allowance) release() { a.give(a.n) }

// slot is a request's right to use a CPU. It is given back wherever the
// request waits for something else.
type slot struct {
	ctx  context.Context
	free chan struct{}
	held bool
}

func (s *slot) acquire() error {
	if s.held {
		return nil
	}
	select { // a free one first: a client that has broken off is told by its body
	case s.free <- struct{}{}:
		s.held = true
		return nil
	default:
	}
	select {
	case s.free <- struct{}{}:
		s.held = true
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

func (s *slot) release() {
	if s.held {
		<-s.free
		s.held = false
	}
}

// counter reads from the network without holding a CPU, and counts. The end, or
// an error, is the same whenever it is read.
type counter struct {
	r    io.Reader
	slot *slot
	n    int64
	err  error
}

// Read implements io.Reader.
func (c *counter) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	held := c.slot.held
	c.slot.release()
	n, err := c.r.Read(p)
	c.n += int64(n)
	if held {
		if e := c.slot.acquire(); e != nil && err == nil {
			err = e
		}
	}
	c.err = err
	return n, err
}
