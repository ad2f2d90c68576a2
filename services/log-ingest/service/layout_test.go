package ingest

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/dgraph-io/badger/v4"

	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/store"
	"github.com/nightjar-edr/nightjar/pkg/view"
)

// A store of the first version has a list of partitions, all of them built.
func TestLayoutOfTheFirstVersion(t *testing.T) {
	var l layout
	if err := json.Unmarshal([]byte(`[1,3,5]`), &l); err != nil {
		t.Fatal(err)
	}
	if len(l.Pieces) != 1 || l.Pieces[0].ID != 0 || !l.Pieces[0].Built || !slices.Equal(l.Pieces[0].Partitions, []int{1, 3, 5}) {
		t.Errorf("read as %+v", l)
	}
	own := setOf([]int{1, 2, 5})
	l.plan(&own)
	if len(l.Pieces) != 2 || !slices.Equal(l.Pieces[0].Partitions, []int{1, 3, 5}) || !slices.Equal(l.Pieces[1].Partitions, []int{2}) || l.Pieces[1].Built {
		t.Errorf("planned as %+v", l)
	}
}

// Whatever a replica is to have one after the other, and wherever its moves
// are broken off, its layout is sound, nothing complete is dropped before it
// is released, nothing is built before it is dropped, and no piece ever gets
// partitions under the position of another.
func TestPlanIsSound(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	l := &layout{}
	// last has each piece's partitions as the store has them.
	last := map[int]partitionSet{}
	for step := range 3000 {
		before := l.clone()
		l = l.clone()
		shards := 1 + r.IntN(6)
		list, err := share(shards, r.IntN(6), nil)
		if err != nil {
			t.Fatal(err)
		}
		own, err := newPartitionSet(list)
		if err != nil {
			t.Fatal(err)
		}
		gone := own.complement()
		switch r.IntN(4) {
		case 0: // a new start
			l.plan(&own)
			has := setOf(l.Dropping)
			for _, p := range l.Pieces {
				set := setOf(p.Partitions)
				has = has.or(&set)
			}
			for n := range own {
				if own[n] && !has[n] {
					t.Fatalf("step %d: partition %d is owned and neither held nor dropped first: %+v", step, n, l)
				}
			}
			for _, p := range before.Pieces {
				if i := l.index(p.ID); p.Built && (i < 0 || !slices.Equal(l.Pieces[i].Partitions, p.Partitions)) {
					t.Fatalf("step %d: the complete piece %+v was changed: %+v", step, p, l)
				}
			}
		case 1: // what is dropped is gone
			l.Dropping = slices.DeleteFunc(l.Dropping, func(int) bool { return r.IntN(2) == 0 })
			l.plan(&own)
		case 2: // another replica holds some
			if len(l.Pieces) > 0 {
				l.release(l.Pieces[r.IntN(len(l.Pieces))].ID, &gone)
			}
		case 3:
			if len(l.Pieces) > 0 {
				l.Pieces[r.IntN(len(l.Pieces))].Built = true
			}
		}
		if err := l.check(); err != nil {
			t.Fatalf("step %d: %v: %+v", step, err, l)
		}
		now := map[int]partitionSet{}
		for _, p := range l.Pieces {
			set := setOf(p.Partitions)
			if set.empty() {
				t.Fatalf("step %d: a piece without partitions: %+v", step, l)
			}
			// The position of a piece stays only with partitions it was for.
			if was, ok := last[p.ID]; ok && set.or(&was) != was {
				t.Fatalf("step %d: piece %d had %v and has %v", step, p.ID, was.list(), p.Partitions)
			}
			now[p.ID] = set
		}
		last = now
	}
}

func TestUnsoundLayouts(t *testing.T) {
	for name, text := range map[string]string{
		"a partition twice":     `{"pieces":[{"id":0,"partitions":[1]},{"id":1,"partitions":[1]}]}`,
		"held and dropped":      `{"pieces":[{"id":0,"partitions":[1]}],"dropping":[1]}`,
		"a piece twice":         `{"pieces":[{"id":0,"partitions":[1]},{"id":0,"partitions":[2]}]}`,
		"no such partition":     `{"pieces":[{"id":0,"partitions":[32]}]}`,
		"neither of both forms": `"all"`,
	} {
		t.Run(name, func(t *testing.T) {
			db := layoutStore(t)
			if err := db.Update(func(txn *badger.Txn) error { return txn.Set(layoutKey, []byte(text)) }); err != nil {
				t.Fatal(err)
			}
			if l, err := readLayout(db); err == nil {
				t.Errorf("read as %+v", l)
			}
		})
	}
}

func layoutStore(t *testing.T) *store.DB {
	t.Helper()
	db, err := openStore(&Config{Env: lifecycle.Env{Log: lifecycle.Discard(), DataDir: t.TempDir()}})
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

// A layout is written as it is, and the positions of pieces that end go with
// them.
func TestWriteLayout(t *testing.T) {
	db := layoutStore(t)
	before := &layout{Replica: "r", Pieces: []piece{{ID: 0, Partitions: []int{0, 2}, Built: true}, {ID: 3, Partitions: []int{1}}}}
	if err := before.write(db, &layout{}); err != nil {
		t.Fatal(err)
	}
	position := func(name string) uint64 {
		v, err := view.New(view.Config{Name: name, DB: db})
		if err != nil {
			t.Fatal(err)
		}
		return v.Position()
	}
	views := []string{"events", "alerts", "events-3", "alerts-3"}
	err := db.Update(func(txn *badger.Txn) error {
		for _, name := range views {
			if err := txn.Set([]byte("\x00view/"+name), []byte(`{"stream":"S","seq":7}`)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	after := before.clone()
	gone := setOf([]int{1, 2})
	after.release(0, &gone)
	after.release(3, &gone)
	if err := after.write(db, before); err != nil {
		t.Fatal(err)
	}
	read, err := readLayout(db)
	if err != nil {
		t.Fatal(err)
	}
	if read.Replica != "r" || len(read.Pieces) != 1 || !slices.Equal(read.Pieces[0].Partitions, []int{0}) || !read.Pieces[0].Built || !slices.Equal(read.Dropping, []int{1, 2}) {
		t.Errorf("read %+v", read)
	}
	for i, want := range []uint64{7, 7, 0, 0} {
		if got := position(views[i]); got != want {
			t.Errorf("position of %s is %d, want %d", views[i], got, want)
		}
	}
}
