package logstore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/store"
)

const endpoint = "5a92baeb-9384-47d3-92b4-a0db6f9b8c6d"

// failer is what a test, a benchmark and a property have in common.
type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

func openStore(t testing.TB) *store.DB {
	t.Helper()
	db, err := store.Open(store.Options{Dir: t.TempDir(), Large: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// fixture writes transactions to a store and remembers what it must hold.
type fixture struct {
	db       *store.DB
	endpoint string
	writer   *Writer
	kind     Kind
	cache    int
	seq      uint64
	seen     map[string]bool
	model    []modelLine
}

type modelLine struct {
	pos  Pos
	line string
}

func newFixture(db *store.DB, kind Kind, cache int) *fixture {
	return &fixture{db: db, endpoint: endpoint, kind: kind, cache: cache, writer: NewWriter(db, kind, cache), seen: map[string]bool{}}
}

// restart forgets what the writer keeps in memory.
func (f *fixture) restart() { f.writer = NewWriter(f.db, f.kind, f.cache) }

// merge merges what the fixture's endpoint has, however little it is.
func (f *fixture) merge(t failer) Merged {
	t.Helper()
	done, err := f.writer.Merge(background, Merging{Owns: func(e string) bool { return e == f.endpoint }, Exclusive: alone, Quiet: 1, Step: noRest})
	if err != nil {
		t.Fatalf("merge: %v", err)
	}
	return done
}

func noRest(context.Context, time.Duration) error { return nil }

type input struct {
	at    time.Time
	timed bool
	line  string
}

// write writes one transaction and holds the counts of its batch against the
// model.
func (f *fixture) write(t failer, in []input) {
	t.Helper()
	stored := 0
	var entries []Entry
	for i, l := range in {
		f.seq++
		e := Entry{Endpoint: f.endpoint, Time: l.at, Timed: l.timed, Hash: event.HashOf([]byte(l.line)), Arrival: f.seq, Line: []byte(l.line)}
		entries = append(entries, e)
		if !f.seen[l.line] {
			f.seen[l.line] = true
			f.model = append(f.model, modelLine{At(l.at, f.seq), in[i].line})
			stored++
		}
	}
	b := f.writer.Begin(f.seq)
	defer b.Close()
	txn := f.db.NewTransaction(true)
	defer txn.Discard()
	for i := range entries {
		if _, err := b.Add(&entries[i]); err != nil {
			t.Fatalf("add: %v", err)
		}
	}
	if err := b.Write(txn); err != nil {
		t.Fatalf("write: %v", err)
	}
	if err := txn.Commit(); err != nil {
		t.Fatalf("commit: %v", err)
	}
	b.Committed()
	if b.Stored != stored || b.Repeated != len(in)-stored {
		t.Fatalf("stored %d and passed over %d of %d lines, want %d stored", b.Stored, b.Repeated, len(in), stored)
	}
}

// between returns what the store must give for exclusive bounds, in order.
func (f *fixture) between(start, stop time.Time) []modelLine {
	var out []modelLine
	for _, l := range f.model {
		at := l.pos.Time()
		if (start.IsZero() || at.After(start)) && (stop.IsZero() || at.Before(stop)) {
			out = append(out, l)
		}
	}
	slices.SortStableFunc(out, func(a, b modelLine) int {
		if c := a.pos.Time().Compare(b.pos.Time()); c != 0 {
			return c
		}
		return cmp.Compare(a.pos.Arrival, b.pos.Arrival)
	})
	return out
}

// readAll pages through a query, each page held against the bounds of pages.
func readAll(t failer, db *store.DB, q Query) []string {
	t.Helper()
	r := NewReader(db)
	var out []string
	for {
		p, err := r.Page(background, q)
		if err != nil {
			t.Fatalf("page: %v", err)
		}
		asStored := q
		asStored.Packed = true
		same, err := r.Page(background, asStored)
		if err != nil {
			t.Fatalf("page as it is stored: %v", err)
		}
		if same.Packed != nil {
			if same.Lines, err = message.OpenPage(nil, same.Packed); err != nil {
				t.Fatalf("page as it is stored: %v", err)
			}
		}
		if !bytes.Equal(same.Lines, p.Lines) || same.Count != p.Count || same.Last != p.Last || same.More != p.More || same.Size != len(p.Lines) || p.Size != same.Size {
			t.Fatalf("page of %d lines and %d bytes is another one as it is stored: %d lines and %d bytes", p.Count, len(p.Lines), same.Count, same.Size)
		}
		got := bytes.SplitAfter(p.Lines, []byte("\n"))
		got = got[:len(got)-1]
		switch {
		case len(got) != p.Count:
			t.Fatalf("page of %d lines says %d", len(got), p.Count)
		case q.Limit > 0 && p.Count > q.Limit:
			t.Fatalf("page of %d lines, limit %d", p.Count, q.Limit)
		case p.Count > 1 && len(p.Lines) > MaxPageBytes:
			t.Fatalf("page of %d bytes", len(p.Lines))
		case p.Count == 0 && p.More:
			t.Fatalf("an empty page that has more behind it")
		}
		for _, l := range got {
			out = append(out, string(bytes.TrimSuffix(l, []byte("\n"))))
		}
		if !p.More {
			return out
		}
		cursor, err := ParseCursor(p.Last.Cursor())
		if err != nil {
			t.Fatalf("cursor: %v", err)
		}
		q.After, q.Skip = cursor, 0
	}
}

// check holds the answer to a query against the model.
func (f *fixture) check(t failer, start, stop time.Time, skip, limit int) {
	t.Helper()
	q := Query{Endpoint: f.endpoint, Kind: f.kind, Skip: skip, Limit: limit}
	q.Between(start, stop)
	got := readAll(t, f.db, q)
	want := f.between(start, stop)
	want = want[min(skip, len(want)):]
	if len(got) != len(want) {
		t.Fatalf("%d lines between %v and %v, skip %d, limit %d: want %d", len(got), start, stop, skip, limit, len(want))
	}
	for i := range got {
		if got[i] != want[i].line {
			t.Fatalf("line %d between %v and %v: got %.80q, want %.80q", i, start, stop, got[i], want[i].line)
		}
	}
}

func numbered(at time.Time, n int) input {
	return input{at: at, timed: true, line: fmt.Sprintf(`{"n":%d,"t":%q}`, n, at.Format(time.RFC3339Nano))}
}

// TestWriteInParts holds that a batch may be written endpoint by endpoint, and that
// a line which comes too late for that is an error, not a loss.
func TestWriteInParts(t *testing.T) {
	db := openStore(t)
	w := NewWriter(db, Events, 1<<20)
	b := w.Begin(7)
	defer b.Close()
	e := Entry{Time: noon, Timed: true, Hash: event.HashOf([]byte("{}")), Arrival: 7 << ArrivalBits, Line: []byte("{}")}
	err := db.Update(func(txn *badger.Txn) error {
		for _, e.Endpoint = range []string{endpoint, "11111111-2222-3333-4444-555555555555"} {
			if stored, err := b.Add(&e); err != nil || !stored {
				t.Errorf("line of %s stored: %t, %v", e.Endpoint, stored, err)
			}
			if err := b.Write(txn); err != nil {
				return err
			}
		}
		if _, err := b.Add(&e); !errors.Is(err, errWritten) {
			t.Errorf("a line of an hour that is written: %v", err)
		}
		return b.Write(txn)
	})
	if err != nil {
		t.Fatal(err)
	}
	b.Committed()
	if b.Stored != 2 || b.Chunks != 2 {
		t.Errorf("%d lines in %d chunks, want 2 in 2", b.Stored, b.Chunks)
	}
}
