package logstore

import (
	"fmt"
	"testing"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
)

// benchLines makes lines of about 1.5 kB of a kind that compresses as
// recordings of Windows do.
func benchLines(n int) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		out[i] = fmt.Appendf(nil, `{"Event":{"EventData":{"CommandLine":"C:\\Windows\\System32\\svchost.exe -k netsvcs -p -s Schedule %08x","Image":"C:\\Windows\\System32\\svchost.exe","ProcessGuid":"{%08x-1d6a-5f8e-0000-0010%08x}","TargetObject":"HKLM\\SOFTWARE\\Microsoft\\Windows NT\\CurrentVersion\\Schedule\\TaskCache\\Tree\\%d","Hashes":"SHA1=%x"},"System":{"Channel":"Microsoft-Windows-Sysmon/Operational","EventID":%d,"Computer":"WS-ACCOUNTING-01","TimeCreated":{"SystemTime":"2025-06-01T12:00:00.%09dZ"}}}}`,
			i*2654435761, i*40503, i, i%977, event.HashOf([]byte(fmt.Sprint(i))), i%25, i)
	}
	return out
}

func BenchmarkWrite(b *testing.B) {
	const group = 10_000
	lines := benchLines(group)
	hashes := make([]event.Hash, group)
	base := time.Date(2025, 6, 1, 12, 0, 0, 0, time.UTC)
	db := openStore(b)
	w := NewWriter(db, Events, 48<<20)
	n := 0
	size := 0
	for i := range lines {
		size += len(lines[i])
	}
	b.ResetTimer()
	for b.Loop() {
		batch := w.Begin(uint64(n + 1))
		for i, l := range lines {
			hashes[i] = event.HashOf(l)
			hashes[i][0], hashes[i][1], hashes[i][2], hashes[i][3] = byte(n), byte(n>>8), byte(n>>16), byte(n>>24)
			if _, err := batch.Add(&Entry{Endpoint: endpoint[:35] + string('0'+byte(i%10)), Time: base.Add(time.Duration(n/4) * time.Millisecond), Timed: true, Hash: hashes[i], Arrival: uint64(n), Line: l}); err != nil {
				b.Fatal(err)
			}
			n++
		}
		txn := db.NewTransaction(true)
		if err := batch.Write(txn); err != nil {
			b.Fatal(err)
		}
		if err := txn.Commit(); err != nil {
			b.Fatal(err)
		}
		batch.Committed()
		batch.Close()
		if batch.Stored != group {
			b.Fatalf("%d lines stored", batch.Stored)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/line")
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "lines/s")
	b.SetBytes(int64(size))
}

// BenchmarkPage measures what a page costs on both ends of its way.
func BenchmarkPage(b *testing.B) {
	const lines = 200_000
	base := time.Date(2025, 6, 1, 12, 0, 0, 0, time.UTC)
	db := openStore(b)
	w := NewWriter(db, Events, 48<<20)
	sample := benchLines(10_000)
	for n := 0; n < lines; n += len(sample) {
		batch := w.Begin(uint64(n + 1))
		for i, l := range sample {
			h := event.HashOf(l)
			h[0], h[1], h[2] = byte(n>>8), byte(n>>16), byte(n>>24)
			if _, err := batch.Add(&Entry{Endpoint: endpoint, Time: base.Add(time.Duration(n+i) * time.Millisecond), Timed: true, Hash: h, Arrival: uint64(n + i), Line: l}); err != nil {
				b.Fatal(err)
			}
		}
		txn := db.NewTransaction(true)
		if err := batch.Write(txn); err != nil {
			b.Fatal(err)
		}
		if err := txn.Commit(); err != nil {
			b.Fatal(err)
		}
		batch.Committed()
		batch.Close()
	}
	r := NewReader(db)
	for name, asStored := range map[string]bool{"as stored": true, "compressed anew": false} {
		b.Run(name, func(b *testing.B) {
			q := Query{Endpoint: endpoint, Kind: Events, Detections: true, Packed: asStored}
			q.Between(time.Time{}, time.Time{})
			bytes, count := 0, 0
			var packed, opened []byte
			for b.Loop() {
				p, err := r.Page(background, q)
				if err != nil {
					b.Fatal(err)
				}
				if asStored {
					opened, err = message.OpenPage(opened, p.Packed)
				} else {
					packed = message.Compress(packed[:0], p.Lines)
					opened, err = message.Decompress(opened[:0], packed)
				}
				if err != nil {
					b.Fatal(err)
				}
				bytes += len(opened)
				count += p.Count
				q.After = p.Last
				if !p.More {
					q.After = Beginning()
				}
			}
			b.ReportMetric(float64(bytes)/b.Elapsed().Seconds()/1e6, "MB/s")
			b.ReportMetric(float64(count)/b.Elapsed().Seconds(), "lines/s")
		})
	}
}
