package logstore

import (
	"slices"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
)

// item is a line that was picked for a page, and where it is kept.
type item struct {
	pos Pos
	// hash is the line's hash, or its tag where tagged is set.
	hash       event.Hash
	tagged     bool
	kind       Kind
	first      uint64
	sub        uint16
	from, size uint32
	// count is the number of lines of the chunk.
	count uint32
}

// selection keeps the first lines, by position, of those it is offered in
// whatever order: as many as fit its bounds, at least one.
type selection struct {
	maxItems, maxBytes int
	// items are a heap with the last position on top.
	items []item
	bytes int
	// cut tells that a line was refused; bound is the first one's position.
	cut   bool
	bound Pos
}

// offer adds a line unless it stands behind what the selection can hold. It
// returns false when no line behind this one can be in the selection.
func (s *selection) offer(it *item) bool {
	if s.cut && it.pos.Compare(s.bound) >= 0 {
		return false
	}
	s.items = append(s.items, *it)
	s.bytes += int(it.size)
	s.up(len(s.items) - 1)
	for len(s.items) > s.maxItems || (len(s.items) > 1 && s.bytes > s.maxBytes) {
		s.bound, s.cut = s.items[0].pos, true
		s.drop()
	}
	return !s.cut || it.pos.Compare(s.bound) < 0
}

// ends tells whether no line from pos on can be in the selection.
func (s *selection) ends(pos Pos) bool { return s.cut && pos.Compare(s.bound) >= 0 }

// sorted returns the lines in order and ends the use of the selection.
func (s *selection) sorted() []item {
	slices.SortFunc(s.items, func(a, b item) int { return a.pos.Compare(b.pos) })
	return s.items
}

func (s *selection) up(i int) {
	h := s.items
	for i > 0 {
		parent := (i - 1) / 2
		if h[parent].pos.Compare(h[i].pos) >= 0 {
			return
		}
		h[parent], h[i] = h[i], h[parent]
		i = parent
	}
}

// drop removes the last position.
func (s *selection) drop() {
	h := s.items
	n := len(h) - 1
	s.bytes -= int(h[0].size)
	h[0] = h[n]
	h = h[:n]
	s.items = h
	for i := 0; ; {
		child := 2*i + 1
		if child >= n {
			return
		}
		if child+1 < n && h[child+1].pos.Compare(h[child].pos) > 0 {
			child++
		}
		if h[i].pos.Compare(h[child].pos) >= 0 {
			return
		}
		h[i], h[child] = h[child], h[i]
		i = child
	}
}
