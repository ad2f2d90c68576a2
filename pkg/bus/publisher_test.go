package bus_test

import (
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
)

// rig is a stream and a publisher to it.
func publisherRig(t testing.TB, cfg jetstream.StreamConfig) (*bus.Bus, *bus.Publisher) {
	t.Helper()
	b := natstest.Start(t).Bus(t, "test")
	cfg.Name, cfg.Subjects = "S", []string{"s.>"}
	if _, err := b.JS.CreateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	p, err := bus.NewPublisher(b, 10*time.Second, 0)
	if err != nil {
		t.Fatal(err)
	}
	return b, p
}

func numbered(n int, id string) *nats.Msg {
	m := nats.NewMsg("s." + strconv.Itoa(n%7))
	m.Data = []byte(strconv.Itoa(n))
	if id != "" {
		m.Header.Set(nats.MsgIdHdr, id)
	}
	return m
}

// outcome waits for what becomes of a message.
func outcome(t testing.TB, f jetstream.PubAckFuture) (*jetstream.PubAck, error) {
	t.Helper()
	select {
	case ack := <-f.Ok():
		return ack, nil
	case err := <-f.Err():
		return nil, err
	case <-time.After(30 * time.Second):
		t.Fatal("no outcome")
		return nil, nil
	}
}

func handOver(t testing.TB, p *bus.Publisher, msgs []*nats.Msg) []jetstream.PubAckFuture {
	t.Helper()
	out := make([]jetstream.PubAckFuture, len(msgs))
	for i, m := range msgs {
		var err error
		if out[i], err = p.PublishMsgAsync(m); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// Each message's acknowledgement names the place where that message stands, and
// many of them go together.
func TestPublisherAcknowledgesEachMessage(t *testing.T) {
	b, p := publisherRig(t, jetstream.StreamConfig{AllowAtomicPublish: true})
	const n = 2000
	msgs := make([]*nats.Msg, n)
	for i := range msgs {
		msgs[i] = numbered(i, "id-"+strconv.Itoa(i))
	}
	s, err := b.JS.Stream(t.Context(), "S")
	if err != nil {
		t.Fatal(err)
	}
	together := 0
	places := map[uint64]bool{}
	for i, f := range handOver(t, p, msgs) {
		ack, err := outcome(t, f)
		if err != nil {
			t.Fatal(err)
		}
		if places[ack.Sequence] || ack.Duplicate {
			t.Fatalf("message %d: %+v", i, ack)
		}
		places[ack.Sequence] = true
		m, err := s.GetMsg(t.Context(), ack.Sequence)
		if err != nil || string(m.Data) != strconv.Itoa(i) {
			t.Fatalf("message %d stands not at %d: %v", i, ack.Sequence, err)
		}
		if m.Header.Get("Nats-Batch-Id") != "" {
			together++
		}
	}
	if together < n/2 {
		t.Errorf("%d of %d messages shared a write", together, n)
	}
}

// What the stream has already is told as such, and keeps nothing else of the
// same group out; nor does the same message twice in a group.
func TestPublisherToldOfDuplicates(t *testing.T) {
	_, p := publisherRig(t, jetstream.StreamConfig{AllowAtomicPublish: true})
	first, err := outcome(t, handOver(t, p, []*nats.Msg{numbered(0, "known")})[0])
	if err != nil {
		t.Fatal(err)
	}
	msgs := make([]*nats.Msg, 100)
	for i := range msgs {
		msgs[i] = numbered(i, "id-"+strconv.Itoa(i))
	}
	msgs[40] = numbered(40, "known")
	msgs[80] = numbered(79, "id-79")
	seqs := map[uint64]int{}
	var twins []bool
	for i, f := range handOver(t, p, msgs) {
		ack, err := outcome(t, f)
		if err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
		switch {
		case i == 79 || i == 80:
			twins = append(twins, ack.Duplicate)
		case ack.Duplicate != (i == 40):
			t.Errorf("message %d: %+v", i, ack)
		}
		if i == 40 && ack.Sequence != first.Sequence {
			t.Errorf("the duplicate stands at %d, not %d", ack.Sequence, first.Sequence)
		}
		seqs[ack.Sequence]++
	}
	if twins[0] == twins[1] {
		t.Errorf("of two messages with one id, told to be a duplicate: %v", twins)
	}
	if len(seqs) != 99 {
		t.Errorf("%d places for 99 messages", len(seqs))
	}
}

// busy hands 2000 messages over at once, which are several batches, and then 600
// one after the other, with time enough for each to be sent alone. It returns
// what becomes of these.
func busy(t *testing.T, b *bus.Bus, gather time.Duration) []jetstream.PubAckFuture {
	t.Helper()
	p, err := bus.NewPublisher(b, time.Minute, gather)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2000 {
		handOver(t, p, []*nats.Msg{numbered(i, "")})
	}
	var out []jetstream.PubAckFuture
	for i := range 600 {
		out = append(out, handOver(t, p, []*nats.Msg{numbered(i, "")})...)
		for range 10 {
			if _, err := b.JS.Stream(t.Context(), "S"); err != nil {
				t.Fatal(err)
			}
		}
	}
	return out
}

// Messages that come one after the other, none of them waiting for its answer,
// share a write while so much comes that it pays.
func TestPublisherGathers(t *testing.T) {
	b, _ := publisherRig(t, jetstream.StreamConfig{AllowAtomicPublish: true})
	s, err := b.JS.Stream(t.Context(), "S")
	if err != nil {
		t.Fatal(err)
	}
	batches := map[string]int{}
	for _, f := range busy(t, b, time.Minute)[300:344] { // the last 255 may wait for others
		ack, err := outcome(t, f)
		if err != nil {
			t.Fatal(err)
		}
		m, err := s.GetMsg(t.Context(), ack.Sequence)
		if err != nil {
			t.Fatal(err)
		}
		batches[m.Header.Get("Nats-Batch-Id")]++
	}
	if len(batches) > 2 || batches[""] > 0 {
		t.Errorf("44 messages in %d batches, want at most 2, and none alone: %v", len(batches), batches)
	}
}

// A message that waits for others which do not come is sent all the same.
func TestPublisherEndsGathering(t *testing.T) {
	b, _ := publisherRig(t, jetstream.StreamConfig{AllowAtomicPublish: true})
	for _, f := range busy(t, b, 100*time.Millisecond) {
		if _, err := outcome(t, f); err != nil {
			t.Fatal(err)
		}
	}
}

// A stream that takes no batches takes the messages one by one, and no trace
// of the attempt is left on them.
func TestPublisherWithoutBatches(t *testing.T) {
	b, p := publisherRig(t, jetstream.StreamConfig{})
	msgs := make([]*nats.Msg, 100)
	for i := range msgs {
		msgs[i] = numbered(i, "")
	}
	places := map[uint64]bool{}
	for i, f := range handOver(t, p, msgs) {
		ack, err := outcome(t, f)
		if err != nil || places[ack.Sequence] {
			t.Fatalf("message %d: %+v, %v", i, ack, err)
		}
		places[ack.Sequence] = true
	}
	s, err := b.JS.Stream(t.Context(), "S")
	if err != nil {
		t.Fatal(err)
	}
	for seq := range uint64(100) {
		if m, err := s.GetMsg(t.Context(), seq+1); err != nil || len(m.Header) != 0 {
			t.Fatalf("message %d has headers %v, %v", seq, m.Header, err)
		}
	}
}

// A full stream refuses what does not fit, message by message: what is told to
// be stored is, and nothing else.
func TestPublisherToAFullStream(t *testing.T) {
	b, p := publisherRig(t, jetstream.StreamConfig{AllowAtomicPublish: true, MaxMsgs: 50, Discard: jetstream.DiscardNew})
	msgs := make([]*nats.Msg, 100)
	for i := range msgs {
		msgs[i] = numbered(i, "")
	}
	stored, refused := 0, 0
	for _, f := range handOver(t, p, msgs) {
		var api *jetstream.APIError
		switch _, err := outcome(t, f); {
		case err == nil:
			stored++
		case errors.As(err, &api):
			refused++
		default:
			t.Fatal(err)
		}
	}
	s, err := b.JS.Stream(t.Context(), "S")
	if err != nil {
		t.Fatal(err)
	}
	if n := int(s.CachedInfo().State.Msgs); n != stored || stored != 50 || refused != 50 {
		t.Errorf("%d told to be stored, %d refused, %d in the stream", stored, refused, n)
	}
}

// While the server is away messages fail in time, also those that were never
// sent.
func TestPublisherWithoutServer(t *testing.T) {
	srv := natstest.Start(t)
	b := srv.Bus(t, "test")
	p, err := bus.NewPublisher(b, time.Second, 0)
	if err != nil {
		t.Fatal(err)
	}
	srv.NATS.Shutdown()
	srv.NATS.WaitForShutdown()
	msgs := make([]*nats.Msg, 100)
	for i := range msgs {
		msgs[i] = numbered(i, "same") // no two can be in one batch
	}
	for i, f := range handOver(t, p, msgs) {
		if ack, err := outcome(t, f); err == nil {
			t.Fatalf("message %d: %+v", i, ack)
		}
	}
}

// A message larger than NATS takes is refused at once.
func TestPublisherRefusesTooLarge(t *testing.T) {
	b, p := publisherRig(t, jetstream.StreamConfig{AllowAtomicPublish: true})
	m := nats.NewMsg("s.1")
	m.Data = make([]byte, b.NC.MaxPayload()+1)
	if _, err := p.PublishMsgAsync(m); !errors.Is(err, nats.ErrMaxPayload) {
		t.Errorf("got %v", err)
	}
}

// BenchmarkPublisher publishes so many messages at a time, against the
// client's own asynchronous publishing, to a server that syncs every write.
func BenchmarkPublisher(b *testing.B) {
	conn := natstest.StartSynced(b).Bus(b, "test")
	if _, err := conn.JS.CreateStream(b.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}, AllowAtomicPublish: true}); err != nil {
		b.Fatal(err)
	}
	p, err := bus.NewPublisher(conn, 30*time.Second, 0)
	if err != nil {
		b.Fatal(err)
	}
	for _, together := range []int{1, 16, 64, 512} {
		for _, way := range []struct {
			name    string
			publish func(m *nats.Msg) (jetstream.PubAckFuture, error)
		}{
			{"client", func(m *nats.Msg) (jetstream.PubAckFuture, error) { return conn.JS.PublishMsgAsync(m) }},
			{"publisher", p.PublishMsgAsync},
		} {
			b.Run(fmt.Sprintf("%s/%d", way.name, together), func(b *testing.B) {
				futures := make([]jetstream.PubAckFuture, together)
				for b.Loop() {
					for i := range futures {
						m := nats.NewMsg("s." + strconv.Itoa(i))
						m.Data = make([]byte, 1000)
						if futures[i], err = way.publish(m); err != nil {
							b.Fatal(err)
						}
					}
					for _, f := range futures {
						if _, err := outcome(b, f); err != nil {
							b.Fatal(err)
						}
					}
				}
				b.ReportMetric(float64(b.N*together)/b.Elapsed().Seconds(), "msg/s")
			})
		}
	}
}
