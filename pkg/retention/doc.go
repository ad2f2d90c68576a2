// Package retention lets streams keep messages for a time, or up to a size, and
// removes the oldest beyond.
//
// The owner of a stream runs a Keeper on it. The server is told of no limit, for
// it would remove what nobody has looked at yet, and by a clock that it believes
// whatever it says. A Keeper removes up to a sequence and says so in the
// stream's metadata first (stream.RemovedBelow): views take what is missing
// below it for no gap, and services drop what they have derived from it when
// Follow tells them. So nothing that is stored expires by a clock of its own.
//
// The time is that of a Clock, which does not believe at once that much time
// has passed.
package retention
