package logstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/store"
)

// keysOf returns how many entries a store has of each endpoint.
func keysOf(t *testing.T, db *store.DB) map[string]int {
	t.Helper()
	n := map[string]int{}
	err := db.View(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			key := it.Item().Key()
			n[string(key[3:3+int(key[2])])]++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Drop deletes all of some endpoints and nothing of others, and what comes
// again afterwards is stored as if it had never been there.
func TestDrop(t *testing.T) {
	db := openStore(t)
	base := time.Date(2025, 6, 1, 12, 0, 0, 0, time.UTC)
	// Names that begin alike, of different length, and at the end of all keys.
	names := []string{"a", "aa", "ab", "b", endpoint, strings.Repeat("\xff", MaxEndpoint), strings.Repeat("x", 40)}
	entries := func(name string) (out []Entry) {
		for n := range 3 * dropDeletes / 2 {
			l := fmt.Appendf(nil, "line %d", n)
			out = append(out, Entry{Endpoint: name, Time: base.Add(time.Duration(n) * time.Minute), Timed: n%2 == 0,
				Hash: event.HashOf(l), Arrival: uint64(n), Line: l})
		}
		return out
	}
	for i, name := range names {
		for k, kind := range []Kind{Events, Alerts} {
			if err := NewWriter(db, kind, 1<<20).Forget(name, 7); err != nil {
				t.Fatal(err)
			}
			if n := put(t, db, NewWriter(db, kind, 1<<20), uint64(2*i+k+1), entries(name)); n != len(entries(name)) {
				t.Fatalf("%d lines of %q stored", n, name)
			}
		}
	}
	before := keysOf(t, db)
	gone := []string{"aa", endpoint, names[5]}
	isGone := func(name string) bool { return slices.Contains(gone, name) }
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if n, err := Drop(ended, db, isGone); n != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("with a context at its end: %d deleted, %v", n, err)
	}
	// Broken off in the middle, and taken up again.
	breaking, cancel := context.WithCancel(t.Context())
	looks := 0
	first, err := Drop(breaking, db, func(name string) bool {
		if looks++; looks > 2*len(names) {
			cancel()
		}
		return isGone(name)
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("broken off: %v", err)
	}
	second, err := Drop(t.Context(), db, isGone)
	if err != nil {
		t.Fatal(err)
	}
	want, after := 0, keysOf(t, db)
	for _, name := range names {
		if isGone(name) {
			want += before[name]
			before[name] = 0
		}
		if after[name] != before[name] {
			t.Errorf("%d entries of %.5q, want %d", after[name], name, before[name])
		}
	}
	if first+second != want || first == 0 || second == 0 {
		t.Errorf("%d and %d deleted, want %d in all", first, second, want)
	}
	if n := put(t, db, NewWriter(db, Events, 1<<20), 99, entries("aa")); n != len(entries("aa")) {
		t.Errorf("%d lines stored that were dropped before, want %d", n, len(entries("aa")))
	}
	if n := put(t, db, NewWriter(db, Events, 1<<20), 100, entries("b")); n != 0 {
		t.Errorf("%d lines stored again that were not dropped", n)
	}
}
