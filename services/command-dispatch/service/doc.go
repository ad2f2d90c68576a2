// Package dispatch is the service command-dispatch: what is asked of
// endpoints, in which order, what was handed out and what came back.
//
// It owns bucket commands, with one key per command, and object store files,
// which holds values over 256 KiB. It answers on edr.commands.> and publishes
// nothing else.
//
// A command is queued, then sent or cancelled; a sent one is completed by its
// result, or expires. Every step is one compare-and-set on the command's
// revision, so however many replicas and gateways act in the same moment, a
// command is handed out at most once and takes one result. An answer that was
// lost on the way to the endpoint cannot be told from one that was executed:
// such a command is not handed out again but ends, a minute after its timeout
// or ten minutes after it was handed out where it has none, with an error that
// says so.
//
// The commands of an endpoint are ordered by the revision at which they were
// queued, which needs no clock. Each request first brings the view up to what
// the bucket holds at that moment, so a change is seen by all replicas as soon
// as it is acknowledged. Of the commands of an endpoint that wait no more, the
// newest History are kept.
//
// Objects that no command refers to, left behind by an upload that broke off,
// are removed a day later.
package dispatch
