// Package view is the one mechanism by which Nightjar's services fold facts
// from JetStream into their Badger stores.
//
// A View reads one stream in order and hands groups of messages to a Fold,
// together with a Badger transaction. The position reached in the stream is
// written in the same transaction, so a fact is folded exactly once whatever
// crashes when: a restart goes on behind the position, and a deleted store is
// built again from the first message.
//
// The identity of the stream (its name and time of creation) is kept with the
// position. A stream that was recreated, that ends before the position, or
// that has lost messages behind it is never passed over in silence: the view
// stops, says why in Err, in the log and in a metric, and is not ready. That
// holds at the start, when the connection comes back, and from time to time
// between. Messages that were deleted from within the stream are logged and
// counted: a view that is built anew would miss them as well. So are those whose
// retention ended before the view came to them, as its owner says of the stream
// (stream.RemovedBelow). What a removal has taken on purpose is no gap and not
// counted, see Config.Removed.
//
// A view has caught up when it has folded what the leader of its stream held. What
// its consumer says is not enough for that: in a cluster a server may serve it
// whose copy of the stream is still to be filled, after a restore or with a new
// disk.
//
// A view of some subjects cannot tell whose messages have left the stream.
// While it runs its position follows those that are not for it, so that their
// end is no gap. Any that it had not got to, and that left while it was away,
// are one.
package view
