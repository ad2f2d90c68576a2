package ruleengine

import "sync"

// published holds the alerts that this process has raised and that the view of
// ALERTS has not folded yet.
type published struct {
	mu sync.Mutex
	// seq is the last sequence of ALERTS that is folded.
	seq  uint64
	keys map[string]struct{}
}

// add notes an alert that stands in the stream at a sequence.
func (p *published) add(key string, seq uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if seq <= p.seq {
		return
	}
	if p.keys == nil {
		p.keys = make(map[string]struct{})
	}
	p.keys[key] = struct{}{}
}

// folded forgets alerts that the store now holds.
func (p *published) folded(seq uint64, keys []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seq = max(p.seq, seq)
	for _, k := range keys {
		delete(p.keys, k)
	}
}

func (p *published) has(key string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.keys[key]
	return ok
}
