package detect

import (
	"slices"
)

// Worker detects with a set. It belongs to one goroutine at a time.
type Worker struct {
	set   *Set
	event *event
	// gen numbers events, from 1 to maxGen. Entries of memo and seen belong to
	// the event of their number.
	gen uint32
	// memo holds twice the number of an event, plus one if the atom was true.
	memo []uint32
	seen []uint32
	hits []int32
	// matched holds the rules that matched the current event.
	matched []int32
	// current is the rule being evaluated, -1 outside of rules.
	current  int32
	readAtom func(int32) bool
}

const maxGen = 1<<31 - 1

// NewWorker returns a worker. Workers of one set may run at the same time.
func (s *Set) NewWorker() *Worker {
	w := &Worker{
		set:   s,
		event: newEvent(s.fields),
		memo:  make([]uint32, len(s.atoms)),
		seen:  make([]uint32, len(s.rules)),
	}
	w.readAtom = w.atom
	return w
}

// Detect returns what the rules of the set say about an event. The line is the
// event as JSON text, one object; it must not change during the call, and
// nothing of it is kept. A line that is no JSON object gives no detection.
//
// The result is that of gene on the event decoded by encoding/json, a number
// beyond float64 being read as null. Detect never panics: a rule that does is
// set aside and reported, and the others are evaluated again.
func (w *Worker) Detect(line []byte) Detection {
	for {
		d, ok := w.detect(line)
		if ok {
			return d
		}
	}
}

// detect reports false after a rule was set aside.
func (w *Worker) detect(line []byte) (d Detection, ok bool) {
	defer func() {
		w.event.release()
		if v := recover(); v != nil {
			d, ok = Detection{}, w.failed(v)
		}
	}()
	w.current = -1
	if !w.event.load(line) {
		return Detection{}, true
	}
	w.next()
	w.evaluate()
	w.current = -1
	d.Unmarked = w.event.unmarked
	slices.Sort(w.matched)
	for _, n := range w.matched {
		d.add(w.set.rules[n])
	}
	return d, true
}

// failed handles a panic. It reports true when there is no rule to set aside.
func (w *Worker) failed(v any) (done bool) {
	name := ""
	if w.current >= 0 {
		if w.set.aside[w.current].Swap(true) {
			return false
		}
		name = w.set.rules[w.current].info.Name
	}
	if w.set.onPanic != nil {
		w.set.onPanic(name, v)
	}
	return w.current < 0
}

func (w *Worker) next() {
	w.matched = w.matched[:0]
	if w.gen == maxGen {
		w.gen = 0
		clear(w.memo)
		clear(w.seen)
	}
	w.gen++
}

// evaluate finds the rules that match the loaded event.
func (w *Worker) evaluate() {
	s, e := w.set, w.event
	w.group(s.any)
	channel := s.channels[string(e.systemText(e.channel))]
	if channel == nil && len(s.anyIDs) == 0 {
		return
	}
	id := e.eventID()
	w.group(s.anyIDs[id])
	if channel != nil {
		w.group(channel.any)
		w.group(channel.ids[id])
	}
}

func (w *Worker) group(g *group) {
	if g == nil {
		return
	}
	for _, n := range g.always {
		w.try(n)
	}
	e := w.event
	for i := range g.fields {
		f := &g.fields[i]
		v := e.field(f.field)
		if v == nil {
			continue
		}
		for _, n := range f.present {
			w.try(n)
		}
		if f.equals == nil && f.index == nil {
			continue
		}
		folded := e.fold(v)
		for _, n := range f.equals[string(folded)] {
			w.try(n)
		}
		if f.index == nil {
			continue
		}
		w.hits = f.index.search(folded, w.hits[:0])
		for _, h := range w.hits {
			for _, n := range f.rules[h] {
				w.try(n)
			}
		}
	}
}

// try evaluates a rule once for an event.
func (w *Worker) try(n int32) {
	if w.seen[n] == w.gen {
		return
	}
	w.seen[n] = w.gen
	if w.set.aside[n].Load() {
		return
	}
	w.current = n
	r := w.set.rules[n]
	if r.computers != nil {
		if _, ok := r.computers[string(w.event.systemText(w.event.computer))]; !ok {
			return
		}
	}
	if w.run(r.program) {
		w.matched = append(w.matched, n)
	}
}

// run is program.run without an indirect call for each atom.
func (w *Worker) run(p *program) bool {
	if p.gene != nil {
		return p.run(w.readAtom)
	}
	n := p.start
	for n >= 0 {
		d := &p.decisions[n]
		if w.atom(d.atom) {
			n = d.then
		} else {
			n = d.other
		}
	}
	return n == always
}

// atom evaluates an atom once for an event.
func (w *Worker) atom(n int32) bool {
	if m := w.memo[n]; m>>1 == w.gen {
		return m&1 != 0
	}
	m := w.gen << 1
	v := w.set.atoms[n].eval(w.event)
	if v {
		m |= 1
	}
	w.memo[n] = m
	return v
}
