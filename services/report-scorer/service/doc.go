// Package scorer is the report scorer: whom to look at first.
//
// It folds the stream ALERTS into statistics of each endpoint, of bounded
// size, and makes reports and scores of them when asked, on edr.reports.>. It
// owns the key-value bucket reports, whose key <uuid> tells up to which
// sequence of ALERTS an endpoint's alerts do not count any more because its
// report was cleared. It publishes nothing and does not know which endpoints
// exist.
//
// An endpoint's report is a function of two things alone: its alerts behind
// the sequence at which it was last cleared, and the census, the number of
// different signatures in all alerts ever folded. So it does not matter in
// which order a replica learns of alerts and clears, whether it was away, or
// whether it builds its store anew: see tally.go for how that is held. What a
// clear returns is exactly what it clears: an alert that comes at the same
// moment is in the report that is returned or in the next one, never in both
// and never in none.
//
// Alerts from before the removal of what their endpoint had stored do not count
// (see package removal), and names that no other endpoint has leave the census.
//
// A report reflects every clear that was answered before, whichever replica
// made it, and the alerts that this replica has folded.
package scorer
