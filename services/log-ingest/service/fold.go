package ingest

import (
	"context"
	"log/slog"
	"strconv"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/klauspost/compress/zstd"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/store"
	"github.com/nightjar-edr/nightjar/pkg/view"
	"github.com/nightjar-edr/nightjar/services/log-ingest/internal/logstore"
)

const (
	// maxFold is how many bytes of lines one transaction takes, unless a
	// single message holds more.
	maxFold = 16 << 20
	// firstArena is the least room for the lines of an endpoint, keptArena the
	// most that is kept for the next transaction.
	firstArena = 256 << 10
	keptArena  = 4 << 20
	// Bounds of what the writers keep in memory to recognise repetitions.
	eventsCache = 24 << 20
	alertsCache = 8 << 20
)

// A line's number must fit beside the sequence of its message.
var _ [1<<logstore.ArrivalBits - message.MaxBatchEvents]struct{}

// folder folds the messages of a stream into a kind of chunks.
type folder struct {
	stream  string
	kind    logstore.Kind
	writer  *logstore.Writer
	log     *slog.Logger
	metrics *metrics
	// add adds the lines of a message to a batch.
	add func(f *folder, b *logstore.Batch, m *view.Msg, tally *tally) error
	// done notes what a committed batch has stored.
	done func(f *folder, b *logstore.Batch)
	own  *partitionSet
	// exclusive is the view's Exclusive.
	exclusive func(func() error) error
	// removed returns the generation of an endpoint's last removal.
	removed func(endpoint string) uint64
	// generations are those of the lines that the store has of endpoints;
	// one that is missing is 0. The view's Fold or Exclusive guards it.
	generations map[string]uint64
	// maxTxn is the size in bytes that a transaction may have.
	maxTxn int64
	// arena is where the lines of an endpoint stand.
	arena []byte
}

// tally counts the messages of a transaction that were passed over.
type tally struct{ unreadable, removed int }

// fold is a view.Fold.
func (f *folder) fold(txn *badger.Txn, msgs []view.Msg) (func(), error) {
	size := lineBytes(msgs)
	if len(msgs) > 1 && (size > maxFold || f.kind == logstore.Events && entryBytes(msgs) > f.maxTxn) {
		return nil, badger.ErrTxnTooBig // before any work on them
	}
	if err := f.renew(msgs); err != nil {
		return nil, err
	}
	b := f.writer.Begin(msgs[0].Seq)
	defer b.Close()
	var t tally
	for _, of := range byEndpoint(msgs) {
		f.makeRoom(of)
		for i := range of {
			if f.isRemoved(&of[i]) {
				t.removed++
				continue
			}
			if err := f.add(f, b, &of[i], &t); err != nil {
				return nil, err
			}
		}
		if err := b.Write(txn); err != nil {
			return nil, err
		}
	}
	return func() {
		b.Committed()
		f.done(f, b)
		f.metrics.chunks.WithLabelValues(f.kind.String()).Add(float64(b.Chunks))
		f.metrics.unreadable.WithLabelValues(f.stream).Add(float64(t.unreadable))
		f.metrics.removed.WithLabelValues(f.stream).Add(float64(t.removed))
		if cap(f.arena) > keptArena {
			f.arena = nil
		}
	}, nil
}

// byEndpoint returns messages, in their order, of one endpoint after the other:
// what is done for one finds its lines in the caches of the CPU.
func byEndpoint(msgs []view.Msg) [][]view.Msg {
	var all [][]view.Msg
	place := map[string]int{}
	for i := range msgs {
		endpoint := subject.Endpoint(msgs[i].Subject)
		n, ok := place[endpoint]
		if !ok {
			n = len(all)
			place[endpoint] = n
			all = append(all, nil)
		}
		all[n] = append(all[n], msgs[i])
	}
	return all
}

// makeRoom makes the arena ready for the lines of some messages.
func (f *folder) makeRoom(msgs []view.Msg) {
	f.arena = f.arena[:0]
	if f.kind != logstore.Events {
		return
	}
	if size := lineBytes(msgs); size > uint64(cap(f.arena)) {
		f.arena = make([]byte, 0, max(firstArena, size+size/4))
	}
}

// renew forgets the lines of an endpoint that a message of a later generation
// comes from: it tells of a removal, whether that is known already or not. Such
// a message must be the first of its transaction, so that all that came before
// it is committed.
func (f *folder) renew(msgs []view.Msg) error {
	for i := range msgs {
		endpoint, generation := subject.Endpoint(msgs[i].Subject), message.GenerationOf(msgs[i].Header)
		if generation <= f.generations[endpoint] || !subject.IsUUID(endpoint) || !f.own.owns(endpoint) || f.isRemoved(&msgs[i]) {
			continue
		}
		if i > 0 {
			return badger.ErrTxnTooBig
		}
		if err := f.forget(endpoint, generation); err != nil {
			return err
		}
	}
	return nil
}

// isRemoved tells whether a removal that is known has removed a message.
func (f *folder) isRemoved(m *view.Msg) bool {
	endpoint := subject.Endpoint(m.Subject)
	return message.GenerationOf(m.Header) < max(f.generations[endpoint], f.removed(endpoint))
}

// forget deletes the lines of an endpoint that are older than a generation. It
// must be called within the view's Fold or Exclusive.
func (f *folder) forget(endpoint string, generation uint64) error {
	if f.generations[endpoint] >= generation {
		return nil
	}
	if err := f.writer.Forget(endpoint, generation); err != nil {
		return err
	}
	f.generations[endpoint] = generation
	return nil
}

// minFrame is how many bytes of lines a batch must have that becomes a part of a
// chunk as it is: less is compressed much better together.
const minFrame = 64 << 10

// lineBytes returns how many bytes of lines messages announce.
func lineBytes(msgs []view.Msg) uint64 {
	size := uint64(0)
	for i := range msgs {
		var h zstd.Header
		if h.Decode(msgs[i].Data) == nil && h.HasFCS && h.FrameContentSize <= 64<<20 {
			size += h.FrameContentSize
		} else {
			size += uint64(len(msgs[i].Data))
		}
	}
	return size
}

// storedRatio is how much smaller lines that came as they are become in a chunk,
// at the least that is usual.
const storedRatio = 4

// entryBytes estimates what batches of events make of a transaction: lines
// compressed about as they came, and an index.
func entryBytes(msgs []view.Msg) int64 {
	size := int64(0)
	for i := range msgs {
		packed := int64(len(msgs[i].Data))
		if message.Stored(msgs[i].Data) {
			packed /= storedRatio
		}
		size += packed
		if count, err := strconv.Atoi(msgs[i].Header.Get(message.HeaderCount)); err == nil && count <= message.MaxBatchEvents {
			size += int64(count) * logstore.IndexBytes
		}
	}
	return size
}

// sweep deletes what retention has removed from the stream.
func (f *folder) sweep(ctx context.Context, below uint64) error {
	deleted, err := f.writer.Sweep(ctx, below, f.own.owns, f.exclusive)
	f.metrics.swept.WithLabelValues(f.stream).Add(float64(deleted))
	return err
}

func (f *folder) passOver(m *view.Msg, t *tally, err error) {
	t.unreadable++
	f.log.Error("message passed over", "stream", f.stream, "sequence", m.Seq, "subject", m.Subject, "error", err)
}

func addEvents(f *folder, b *logstore.Batch, m *view.Msg, t *tally) error {
	batch, grown, err := message.ParseBatch(m.Subject, m.Header, m.Data, f.arena[len(f.arena):])
	if err != nil {
		f.passOver(m, t, err)
		return nil
	}
	// The lines stand behind those of the messages before; a message that
	// did not fit has got memory of its own.
	if n := len(f.arena) + len(grown); n <= cap(f.arena) {
		f.arena = f.arena[:n]
	}
	if !subject.IsUUID(batch.Endpoint) {
		f.passOver(m, t, logstore.ErrEndpoint)
		return nil
	}
	e := logstore.Entry{Endpoint: batch.Endpoint}
	if len(grown) >= minFrame && !message.Stored(m.Data) {
		e.Frame = &logstore.Frame{Packed: m.Data, Lines: len(batch.Lines)}
	}
	for i, line := range batch.Lines {
		e.At = i
		// A line that is no event does not come here from the gateway; it
		// stands at its receipt like one without a time.
		e.Time = time.Time{}
		if len(batch.Times) > 0 {
			e.Time = batch.Times[i]
		} else if info, err := event.Scan(line); err == nil {
			e.Time = info.Time
		}
		if e.Timed = !e.Time.IsZero(); !e.Timed {
			e.Time = batch.ReceivedAt(i)
		}
		e.Hash, e.Line = event.HashOf(line), line
		e.Arrival = m.Seq<<logstore.ArrivalBits | uint64(i)
		if _, err := b.Add(&e); err != nil {
			return err
		}
	}
	return nil
}

func doneEvents(f *folder, b *logstore.Batch) {
	f.metrics.stored.Add(float64(b.Stored))
	f.metrics.repeated.Add(float64(b.Repeated))
	f.metrics.untimed.Add(float64(b.Untimed))
}

func addAlert(f *folder, b *logstore.Batch, m *view.Msg, t *tally) error {
	endpoint := subject.Endpoint(m.Subject)
	if !f.own.owns(endpoint) {
		return nil
	}
	a, err := message.ParseAlert(m.Header, m.Data)
	if err != nil {
		f.passOver(m, t, err)
		return nil
	}
	if a.Endpoint != endpoint || !subject.IsUUID(endpoint) {
		f.passOver(m, t, logstore.ErrEndpoint)
		return nil
	}
	_, err = b.Add(&logstore.Entry{
		Endpoint: endpoint, Time: a.Time, Timed: a.Timed, Hash: a.Hash,
		Arrival: m.Seq << logstore.ArrivalBits, Line: a.Line,
	})
	return err
}

func doneAlerts(f *folder, b *logstore.Batch) {
	f.metrics.alerts.Add(float64(b.Stored))
	f.metrics.alertsRepeated.Add(float64(b.Repeated))
}

// newFolders returns the folders of the two streams.
func newFolders(cfg *Config, db *store.DB, own *partitionSet, removed func(string) uint64, m *metrics) (events, alerts *folder, err error) {
	events = &folder{
		stream: stream.Events, kind: logstore.Events, writer: logstore.NewWriter(db, logstore.Events, eventsCache),
		log: cfg.Log, metrics: m, add: addEvents, done: doneEvents, own: own, maxTxn: db.MaxBatchSize(),
	}
	alerts = &folder{
		stream: stream.Alerts, kind: logstore.Alerts, writer: logstore.NewWriter(db, logstore.Alerts, alertsCache),
		log: cfg.Log, metrics: m, add: addAlert, done: doneAlerts, own: own, maxTxn: db.MaxBatchSize(),
	}
	for _, f := range []*folder{events, alerts} {
		f.removed = removed
		if f.generations, err = f.writer.Generations(); err != nil {
			return nil, nil, err
		}
	}
	return events, alerts, nil
}
