package ingest

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/dgraph-io/badger/v4"

	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/store"
	"github.com/nightjar-edr/nightjar/pkg/view"
)

// layoutKey holds what partitions a store has, as a layout in JSON. Stores of
// the first version have a list of partitions there.
var layoutKey = []byte("\x00partitions")

// layout tells what partitions a store has. It is written in the transactions
// that change it, so that a move goes on where it was after any crash.
//
// A partition that comes to be owned becomes part of a new piece and is built
// from the streams. One that is no longer owned stays until another replica
// holds it; then it is dropped, which takes some time. Only then can it be
// built here again.
type layout struct {
	// Replica names the store among those of other replicas.
	Replica string  `json:"replica"`
	Pieces  []piece `json:"pieces"`
	// Dropping are the partitions of which entries may remain.
	Dropping []int `json:"dropping,omitempty"`
}

// piece is some of a store's partitions, folded together.
type piece struct {
	// ID is unique among the pieces of a store.
	ID         int   `json:"id"`
	Partitions []int `json:"partitions"`
	// Built tells that the piece has caught up with its streams once.
	Built bool `json:"built"`
}

// UnmarshalJSON also reads a list of partitions, which stands for a piece that
// is built.
func (l *layout) UnmarshalJSON(data []byte) error {
	var list []int
	if json.Unmarshal(data, &list) == nil {
		*l = layout{Pieces: []piece{{Partitions: list, Built: true}}}
		return nil
	}
	type plain layout
	return json.Unmarshal(data, (*plain)(l))
}

// viewName returns the name of a view of a piece. Those of piece 0 are the
// names that they have in a store that was never changed.
func viewName(kind string, id int) string {
	if id == 0 {
		return kind
	}
	return kind + "-" + strconv.Itoa(id)
}

// index returns where a piece is, -1 for none of this id.
func (l *layout) index(id int) int {
	return slices.IndexFunc(l.Pieces, func(p piece) bool { return p.ID == id })
}

// release takes partitions from a piece, to be dropped. A piece without any
// ends.
func (l *layout) release(id int, gone *partitionSet) {
	i := l.index(id)
	if i < 0 {
		return
	}
	p := &l.Pieces[i]
	var keep []int
	for _, n := range p.Partitions {
		if gone[n] {
			l.Dropping = append(l.Dropping, n)
		} else {
			keep = append(keep, n)
		}
	}
	p.Partitions = keep
	slices.Sort(l.Dropping)
	if len(keep) == 0 {
		l.Pieces = slices.Delete(l.Pieces, i, i+1)
	}
}

// plan makes the layout one of a replica that owns some partitions: those that
// it has not are a new piece, unless they have to be dropped first; those that
// it does not own are dropped where they were never complete.
func (l *layout) plan(own *partitionSet) {
	if l.Replica == "" {
		l.Replica = rand.Text()
	}
	missing, foreign := *own, own.complement()
	// A new piece has nothing of one that ends, its positions least of all.
	used := map[int]bool{}
	for _, p := range slices.Clone(l.Pieces) {
		used[p.ID] = true
		if !p.Built {
			l.release(p.ID, &foreign)
		}
	}
	for _, p := range l.Pieces {
		for _, n := range p.Partitions {
			missing[n] = false
		}
	}
	for _, n := range l.Dropping {
		missing[n] = false
	}
	if list := missing.list(); len(list) > 0 {
		id := 0
		for used[id] {
			id++
		}
		l.Pieces = append(l.Pieces, piece{ID: id, Partitions: list})
	}
}

// check returns an error when the layout cannot be that of a store.
func (l *layout) check() error {
	var seen partitionSet
	ids := map[int]bool{}
	lists := [][]int{l.Dropping}
	for _, p := range l.Pieces {
		if ids[p.ID] {
			return fmt.Errorf("piece %d is there twice", p.ID)
		}
		ids[p.ID] = true
		lists = append(lists, p.Partitions)
	}
	for _, list := range lists {
		for _, n := range list {
			if n < 0 || n >= subject.Partitions || seen[n] {
				return fmt.Errorf("partition %d is there twice, or is none", n)
			}
			seen[n] = true
		}
	}
	return nil
}

// clone returns a copy that shares nothing.
func (l *layout) clone() *layout {
	c := &layout{Replica: l.Replica, Dropping: slices.Clone(l.Dropping)}
	for _, p := range l.Pieces {
		p.Partitions = slices.Clone(p.Partitions)
		c.Pieces = append(c.Pieces, p)
	}
	return c
}

// readLayout returns the layout of a store, an empty one for a new store.
func readLayout(db *store.DB) (*layout, error) {
	l := &layout{}
	err := db.View(func(txn *badger.Txn) error {
		item, err := txn.Get(layoutKey)
		if errors.Is(err, badger.ErrKeyNotFound) {
			return nil
		} else if err != nil {
			return err
		}
		return item.Value(func(b []byte) error { return json.Unmarshal(b, l) })
	})
	if err == nil {
		err = l.check()
	}
	if err != nil {
		return nil, fmt.Errorf("read which partitions the store has: %w", err)
	}
	return l, nil
}

// write replaces the layout before in the store by l, and forgets the
// positions of pieces that are not in l any more.
func (l *layout) write(db *store.DB, before *layout) error {
	value, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("encode which partitions the store has: %w", err)
	}
	err = db.Update(func(txn *badger.Txn) error {
		for _, p := range before.Pieces {
			if l.index(p.ID) >= 0 {
				continue
			}
			for _, kind := range []string{eventsView, alertsView} {
				if err := view.Forget(txn, viewName(kind, p.ID)); err != nil {
					return err
				}
			}
		}
		return txn.Set(layoutKey, value)
	})
	if err != nil {
		return fmt.Errorf("write which partitions the store has: %w", err)
	}
	return nil
}
