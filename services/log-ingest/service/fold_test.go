package ingest

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/store"
	"github.com/nightjar-edr/nightjar/pkg/view"
)

// newFolder returns the folder of events on a store of its own.
func newFolder(t testing.TB) (*folder, *store.DB) {
	t.Helper()
	own, err := newPartitionSet(nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Env: lifecycle.Env{Log: lifecycle.Discard(), DataDir: t.TempDir()}}
	db, err := openStore(&cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	events, _, err := newFolders(&cfg, db, &own, func(string) uint64 { return 0 }, newMetrics(prometheus.NewRegistry(), db))
	if err != nil {
		t.Fatal(err)
	}
	return events, db
}

func batchMsg(endpoint string, received time.Time, seq uint64, lines ...string) view.Msg {
	b := message.Batch{Endpoint: endpoint, Received: received}
	m := b.BatchMsg([]byte(strings.Join(lines, "\n")+"\n"), len(lines))
	return view.Msg{Subject: m.Subject, Header: m.Header, Data: m.Data, Seq: seq, Time: received}
}

// TestTooBig holds that a group that is too big for one transaction is left
// to the view to be split, and has changed nothing.
func TestTooBig(t *testing.T) {
	blank := strings.Repeat(" ", 1400)
	for name, lineOf := range map[string]func(n int) string{
		"too many keys":  func(n int) string { return fmt.Sprintf(`{"n":%d}`, n) },
		"too many bytes": func(n int) string { return fmt.Sprintf(`{"n":%d%s}`, n, blank) },
	} {
		t.Run(name, func(t *testing.T) {
			f, db := newFolder(t)
			var group []view.Msg
			for seq := range 256 {
				var lines []string
				for n := range message.MaxBatchEvents {
					lines = append(lines, lineOf(seq*message.MaxBatchEvents+n))
				}
				group = append(group, batchMsg(one, noon, uint64(seq+1), lines...))
			}
			try := func(msgs []view.Msg) (func(), error) {
				txn := db.NewTransaction(true)
				defer txn.Discard()
				committed, err := f.fold(txn, msgs)
				if err != nil {
					return nil, err
				}
				return committed, txn.Commit()
			}
			if _, err := try(group); !errors.Is(err, badger.ErrTxnTooBig) {
				t.Fatalf("the whole group: %v, want ErrTxnTooBig", err)
			}
			stored := counterValue(t, f.metrics.stored)
			if stored != 0 {
				t.Fatalf("%v events are counted as stored", stored)
			}
			splits := 0
			var split func(msgs []view.Msg)
			split = func(msgs []view.Msg) {
				committed, err := try(msgs)
				switch {
				case err == nil:
					committed()
				case errors.Is(err, badger.ErrTxnTooBig) && len(msgs) > 1:
					splits++
					split(msgs[:len(msgs)/2])
					split(msgs[len(msgs)/2:])
				default:
					t.Fatal(err)
				}
			}
			split(group)
			if splits > 64 {
				t.Errorf("the group was split %d times", splits)
			}
			if stored := counterValue(t, f.metrics.stored); stored != 256*message.MaxBatchEvents {
				t.Errorf("%v events stored, want %d", stored, 256*message.MaxBatchEvents)
			}
		})
	}
}

// TestFoldAgain holds that folding without a commit leaves nothing behind.
func TestFoldAgain(t *testing.T) {
	f, db := newFolder(t)
	msgs := []view.Msg{
		batchMsg(one, noon, 1, line(noon, 1), line(noon, 2), `{"n":1}`),
		batchMsg(one, noon, 2, line(noon, 2), line(noon.Add(-1), 3), `{"n":1}`),
	}
	for range 3 {
		txn := db.NewTransaction(true)
		if _, err := f.fold(txn, msgs); err != nil {
			t.Fatal(err)
		}
		txn.Discard()
	}
	for _, part := range [][]view.Msg{msgs[:1], msgs[1:]} {
		txn := db.NewTransaction(true)
		committed, err := f.fold(txn, part)
		if err != nil {
			t.Fatal(err)
		}
		if err := txn.Commit(); err != nil {
			t.Fatal(err)
		}
		committed()
	}
	if stored, repeated := counterValue(t, f.metrics.stored), counterValue(t, f.metrics.repeated); stored != 4 || repeated != 2 {
		t.Errorf("%v stored, %v repeated, want 4 and 2", stored, repeated)
	}
}

// TestBigBacklog lets the service meet more than fits a transaction, through
// the view.
func TestBigBacklog(t *testing.T) {
	const batches = 100
	r := newRig(t)
	for seq := range batches {
		var lines []string
		for n := range message.MaxBatchEvents {
			lines = append(lines, fmt.Sprintf(`{"n":%d}`, seq*message.MaxBatchEvents+n))
		}
		r.send(one, noon, lines...)
	}
	r.start()
	r.settle()
	got := r.ask(message.LogsRequest{Endpoint: one})
	if len(got) != batches*message.MaxBatchEvents {
		t.Fatalf("%d events, want %d", len(got), batches*message.MaxBatchEvents)
	}
	for n, l := range got {
		if l != fmt.Sprintf(`{"n":%d}`, n) {
			t.Fatalf("event %d is %s", n, l)
		}
	}
}

// TestRetention holds that an event is shown as long as its stream keeps it,
// and may come again then, whatever its kind; also in a store that was built
// anew.
func TestRetention(t *testing.T) {
	r := newRig(t)
	r.start()
	all := message.LogsRequest{Endpoint: one}
	short := []string{`{"no":"time"}`, line(noon, 1), line(noon, 2)}
	received := time.Now().Add(-400 * 24 * time.Hour)
	r.send(one, received, short...)
	r.send(one, received, short...) // has the writer read the hashes
	r.settle()
	equal(t, "received long ago", r.ask(all), short)
	later := line(noon.Add(time.Hour), 3)
	r.send(one, received, later)
	r.settle()
	if err := stream.Remove(t.Context(), r.bus.JS, stream.Events, 3); err != nil {
		t.Fatal(err)
	}
	r.eventually("the retention ends", func() bool { return len(r.ask(all)) == 1 })
	equal(t, "kept", r.ask(all), []string{later})
	r.send(one, time.Now(), short...)
	r.settle()
	again := r.ask(all)
	if len(again) != 4 {
		t.Errorf("come again: %q", again)
	}
	r.restart(true)
	r.settle()
	equal(t, "built anew", r.ask(all), again)
}

func counterValue(t testing.TB, c prometheus.Counter) float64 {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(c)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return value(families[0].GetMetric()[0])
}

func BenchmarkFold(b *testing.B) {
	const group, each, endpoints = 128, 100, 50
	var names []string
	for n := range endpoints {
		names = append(names, fmt.Sprintf("%08d%s", n, one[8:]))
	}
	f, db := newFolder(b)
	seq, events, bytes := uint64(0), 0, 0
	at := time.Now().Add(-time.Hour)
	received := time.Now()
	b.ResetTimer()
	for b.Loop() {
		b.StopTimer()
		var msgs []view.Msg
		for range group {
			seq++
			var lines []string
			for range each {
				events++
				if events%3 == 0 {
					at = at.Add(50 * time.Microsecond)
				}
				h := event.HashOf([]byte(fmt.Sprint(events)))
				lines = append(lines, fmt.Sprintf(`{"Event":{"EventData":{"CommandLine":"C:\\Windows\\System32\\svchost.exe -k netsvcs -p -s Schedule","Image":"C:\\Windows\\System32\\svchost.exe","ProcessGuid":"{%x-1d6a-5f8e-0000-0010%x}","TargetObject":"HKLM\\SOFTWARE\\Microsoft\\Windows NT\\CurrentVersion\\Schedule\\TaskCache\\Tree\\%d","Hashes":"SHA1=%s","Text":%q},"System":{"Channel":"Microsoft-Windows-Sysmon/Operational","EventID":%d,"Computer":"WS-ACCOUNTING-01","TimeCreated":{"SystemTime":%q}}}}`,
					h[:4], h[4:8], events%977, h, strings.Repeat("the usual words of a message, ", 25), events%25, at.UTC().Format(time.RFC3339Nano)))
				bytes += len(lines[len(lines)-1])
			}
			msgs = append(msgs, batchMsg(names[int(seq)%endpoints], received, seq, lines...))
		}
		b.StartTimer()
		txn := db.NewTransaction(true)
		committed, err := f.fold(txn, msgs)
		if err != nil {
			b.Fatal(err)
		}
		if err := txn.Commit(); err != nil {
			b.Fatal(err)
		}
		committed()
	}
	if got := counterValue(b, f.metrics.stored); int(got) != events {
		b.Fatalf("%v events stored of %d", got, events)
	}
	b.SetBytes(int64(bytes / b.N))
	b.ReportMetric(float64(events)/b.Elapsed().Seconds(), "events/s")
	stored := int64(0)
	err := db.View(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			stored += it.Item().EstimatedSize()
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(stored)/float64(events), "stored-B/event")
}

// Events are stored at the times that come with them, and these make no other
// store than those that are found in their lines.
func TestTimesThatCome(t *testing.T) {
	pad := strings.Repeat("z", 9<<10)
	at := noon.Add(-time.Hour)
	lines := []string{
		fmt.Sprintf(`{"Event":{"System":{"TimeCreated":{"SystemTime":%q}}},"x":%q}`, at.Format(time.RFC3339Nano), pad),
		fmt.Sprintf(`{"x":%q}`, pad),
		fmt.Sprintf(`{"info":{"utc_time":%q}}`, at.Add(1234567*time.Nanosecond).Format(time.RFC3339Nano)),
	}
	times := []time.Time{at, {}, at.Add(1234567 * time.Nanosecond)}
	stored := func(times []time.Time) map[string]string {
		f, db := newFolder(t)
		b := message.Batch{Endpoint: one, Received: noon, Times: times}
		m := b.BatchMsg([]byte(strings.Join(lines, "\n")+"\n"), len(lines))
		if (m.Header.Get(message.HeaderTimes) != "") != (times != nil) {
			t.Fatalf("header %v", m.Header)
		}
		all := map[string]string{}
		err := db.Update(func(txn *badger.Txn) error {
			_, err := f.fold(txn, []view.Msg{{Subject: m.Subject, Header: m.Header, Data: m.Data, Seq: 1, Time: noon}})
			return err
		})
		if err == nil {
			err = db.View(func(txn *badger.Txn) error {
				it := txn.NewIterator(badger.DefaultIteratorOptions)
				defer it.Close()
				for it.Rewind(); it.Valid(); it.Next() {
					value, err := it.Item().ValueCopy(nil)
					if err != nil {
						return err
					}
					all[string(it.Item().Key())] = string(value)
				}
				return nil
			})
		}
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	found := stored(nil)
	if come := stored(times); !maps.Equal(come, found) {
		t.Errorf("with times\n%q\nwithout\n%q", come, found)
	}
	times[0] = times[0].Add(-24 * time.Hour)
	if come := stored(times); maps.Equal(come, found) {
		t.Error("times that come are not looked at")
	}
}
