package ingest

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/nightjar-edr/nightjar/pkg/store"
)

// holding is what a replica has and answers for. The mover changes it, anybody
// may look at it.
type holding struct {
	// own are the partitions that the replica is to have.
	own partitionSet

	// changing is held while parts take the place of others, and while one is
	// told of a removal: what a part is told stands in the store when the one
	// that follows it is made.
	changing sync.Mutex

	mu     sync.Mutex
	layout *layout
	parts  []*part
	// answered are the partitions for which requests find the replica, listing
	// tells that those for artifacts do. While that changes, those for admitted
	// partitions are answered where they come.
	answered, admitted partitionSet
	listing            bool
}

// replace puts a layout in the place of the one before, in the store and here,
// with the parts that belong to it.
func (h *holding) replace(db *store.DB, l *layout, parts []*part) error {
	if err := l.write(db, h.layout); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.layout, h.parts = l, parts
	return nil
}

// admit lets requests for more partitions be answered.
func (h *holding) admit(partitions partitionSet) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.admitted = h.admitted.or(&partitions)
}

// answer sets what is answered.
func (h *holding) answer(partitions partitionSet, listing bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answered, h.admitted, h.listing = partitions, partitions, listing
}

// answers tells whether a request for a partition is to be answered.
func (h *holding) answers(partition int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.admitted[partition]
}

// held returns the partitions of the parts for which a condition holds.
func (h *holding) held(condition func(t *part) bool) (set partitionSet) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range h.parts {
		if condition(t) {
			set = set.or(&t.set)
		}
	}
	return set
}

// part returns the part that has a partition, nil when none does.
func (h *holding) part(partition int) *part {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range h.parts {
		if t.set[partition] {
			return t
		}
	}
	return nil
}

// complete returns the partitions that the replica is to have, has all of, and
// answers for: others need not keep them.
func (h *holding) complete() partitionSet {
	set := h.held(func(t *part) bool { return t.ready() == nil })
	h.mu.Lock()
	defer h.mu.Unlock()
	set = set.and(&h.answered)
	return set.and(&h.own)
}

// states counts the partitions by where they stand.
func (h *holding) states() map[string]int {
	has := h.held(func(*part) bool { return true })
	h.mu.Lock()
	defer h.mu.Unlock()
	count := func(set partitionSet) int { return len(set.list()) }
	foreign, open := h.own.complement(), h.answered.complement()
	return map[string]int{
		stateAnswered: count(h.own.and(&h.answered)),
		stateBuilding: count(h.own.and(&open)),
		stateLeaving:  count(has.and(&foreign)),
		stateDropping: len(h.layout.Dropping),
	}
}

// ready returns nil when everything that the replica is to have is up to date
// and answered.
func (h *holding) ready() error {
	h.mu.Lock()
	parts, answered, listing := slices.Clone(h.parts), h.answered, h.listing
	h.mu.Unlock()
	for _, t := range parts {
		if mine := t.set.and(&h.own); mine.empty() {
			continue // it leaves
		}
		if err := t.ready(); err != nil {
			return err
		}
	}
	open := answered.complement()
	if open = open.and(&h.own); !open.empty() {
		return fmt.Errorf("partitions %v are not answered yet", open.list())
	}
	if !listing {
		return errors.New("artifacts are not listed yet")
	}
	return nil
}
