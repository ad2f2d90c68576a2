package view

// Ended tells the view that retention has removed the messages of its stream
// below a sequence. Those that it has in hand do not come to Fold any more, as
// whoever drops what stands for them would not find what is folded afterwards.
// When Ended returns, what was being folded is committed.
func (v *View) Ended(below uint64) {
	v.committing.Lock()
	defer v.committing.Unlock()
	v.ended = max(v.ended, below)
}

// current returns the messages of a group that have not ended.
func (v *View) current(group []Msg) []Msg {
	for len(group) > 0 && group[0].Seq < v.ended {
		group = group[1:]
	}
	return group
}

// notSeen counts and logs messages that ended with their retention before the
// view came to them: n of them, between two sequences.
func (v *View) notSeen(n int, after, before uint64) {
	v.cfg.Log.Warn("messages ended with their retention before the view came to them", "view", v.cfg.Name, "stream", v.cfg.Stream, "messages", n, "after", after, "before", before)
	if m := v.cfg.Metrics; m != nil {
		m.missing.WithLabelValues(v.cfg.Name).Add(float64(n))
	}
}
