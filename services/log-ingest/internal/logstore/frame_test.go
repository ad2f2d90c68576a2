package logstore

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
)

// framed returns lines as those of a message that has them compressed.
func framed(lines [][]byte, from, seq int) (entries []Entry, packed []byte) {
	var joined []byte
	for i, l := range lines {
		entries = append(entries, Entry{Endpoint: endpoint, Time: noon.Add(time.Duration(from+i) * time.Millisecond), Timed: true,
			Hash: event.HashOf(l), Arrival: uint64(seq)<<ArrivalBits | uint64(i), Line: l, At: i})
		joined = append(append(joined, l...), '\n')
	}
	f := &Frame{Packed: message.Compress(nil, joined), Lines: len(lines)}
	for i := range entries {
		entries[i].Frame = f
	}
	return entries, f.Packed
}

// TestFrames holds that whole messages whose lines follow each other are stored as
// they came, and others line by line, and that both are read alike.
func TestFrames(t *testing.T) {
	const each = 100
	all := benchLines(4000)
	seq := 0
	message := func(from, to int) (entries []Entry, packed []byte) {
		seq++
		return framed(all[from:to], from, seq)
	}
	for name, c := range map[string]struct {
		// messages are where they begin, before a line that is stored already.
		messages []int
		stored   []int
		whole    bool
	}{
		"in order":       {[]int{0, 100, 200}, nil, true},
		"out of order":   {[]int{200, 0, 100}, nil, true},
		"a repetition":   {[]int{0, 100}, []int{150}, false},
		"overlapping":    {[]int{0, 50}, nil, false},
		"several chunks": {[]int{0, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000, 1100, 1200, 1300, 1400, 1500, 1600, 1700, 1800, 1900, 2000, 2100}, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			db := openStore(t)
			w := NewWriter(db, Events, 1<<20)
			for _, n := range c.stored {
				e, _ := message(n, n+1)
				e[0].Frame = nil
				put(t, db, w, uint64(seq), e)
			}
			var in []Entry
			packed := map[int][]byte{}
			lines := map[int]bool{}
			for _, from := range c.messages {
				e, p := message(from, from+each)
				in = append(in, e...)
				packed[from] = p
				for i := range each {
					lines[from+i] = true
				}
			}
			put(t, db, w, uint64(seq), in)
			q := Query{Endpoint: endpoint, Kind: Events}
			q.Between(time.Time{}, time.Time{})
			check := func() {
				t.Helper()
				got := readAll(t, db, q)
				if len(got) != len(lines) {
					t.Fatalf("%d lines, want %d", len(got), len(lines))
				}
				for i, n := 0, 0; i < len(got); n++ {
					if !lines[n] {
						continue
					}
					if got[i] != string(all[n]) {
						t.Fatalf("line %d is %.60q", n, got[i])
					}
					i++
				}
			}
			check()
			bodies, size := 0, 0
			for _, s := range chunks(t, db, Events) {
				if s.count == 1 {
					continue
				}
				bodies++
				err := db.View(func(txn *badger.Txn) error {
					item, err := txn.Get(s.id.bodyKey(Events))
					if err != nil {
						return err
					}
					return item.Value(func(b []byte) error {
						size += len(b)
						for _, p := range packed {
							if bytes.Contains(b, p) {
								size -= len(p)
							}
						}
						return nil
					})
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			if c.whole != (size == 0) {
				t.Errorf("%d bytes in %d bodies are none of a message, want some: %t", size, bodies, !c.whole)
			}
			mergeAll(t, w)
			check()
			if again, _ := message(c.messages[0], c.messages[0]+each); put(t, db, w, uint64(seq), again) != 0 {
				t.Error("lines stored again")
			}
		})
	}
	if fmt.Sprint(framesOf([]entry{{}})) != "[]" {
		t.Error("a line without a frame is one")
	}
}
