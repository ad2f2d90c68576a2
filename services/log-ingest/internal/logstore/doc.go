// Package logstore keeps events and alerts of endpoints in a Badger store, by
// event time, and gives them back page by page.
//
// # Layout
//
// The lines of an endpoint that one transaction adds are sorted by time,
// grouped by the hour they belong to and cut into chunks. A chunk never
// reaches beyond its hour, so that one line with a wild time spoils nothing.
// It is two entries: an index with the time, arrival, length and hash of each
// line, under a key that carries the chunk's first and last time, and a body
// with the compressed lines. A reader finds the chunks of a range by their
// keys, picks the lines of a page by the indexes and opens only the bodies
// that hold one of them.
//
// Merge joins the chunks of an hour to which nothing comes any more into full
// ones. These have tags in place of hashes, see tagger, and the rest of their
// indexes is compressed. A key tells of each hour that has chunks which were not
// merged.
//
// # Order
//
// Lines are ordered by their time, and those of the same time by their
// arrival: the place of a line in its stream, which is the same in every
// replica and in a store that was built again. A cursor is such a position.
//
// # Repetitions
//
// A line that an endpoint has sent before is not stored again, however much
// later it comes. The same line has the same time, so it is compared only
// with the chunks that reach over its time; a line later than everything in
// its hour needs no look at all. Where many chunks lie over each other, as
// those of an endpoint whose clock stands still, and for lines without a time
// of their own, the hashes are keys of the store, one each.
package logstore
