// Package ruleengine is the service rule-engine: it keeps the detection rules
// and their containers, runs the rules over every event, and raises alerts.
//
// It owns the key-value bucket rules, the object store containers and the
// stream ALERTS with the durable consumers of the SIEMs. It reads the stream
// EVENTS through one durable consumer that all replicas share.
//
// # Rules
//
// The whole rule set is one record, replaced with compare-and-set, so that a
// change of several rules is seen by everybody or by nobody. A rule that is new
// is live at once; an update or a deletion is staged until a reload. Every
// replica folds the record into its store, compiles it and swaps the set that
// its workers use, between two batches and never inside one. A request is
// answered when this replica has the change in force; a reading request first
// waits for what other replicas have written before it.
//
// # Containers
//
// A container is an object whose description is replaced with compare-and-set:
// by requests, for which the gateway has stored the text, and by the import of
// a folder, which remembers in the description what it took last. Every replica
// follows the descriptions, reads what is new, and compiles the rules once for
// all that has changed. A request is answered when this replica has the change
// in force.
//
// # Detection
//
// An event becomes an alert when the agent marked it or a rule matches. An
// alert is identified by its endpoint and the hash of its line, and is raised
// once, whatever batches its event comes in and however much later: a view of
// the stream ALERTS holds what was raised before, and the stream's own
// duplicate window covers two replicas in the same moment. A batch is
// acknowledged only after all its alerts are on stable storage, where few come up
// to 5 seconds after, together with others. Killing the
// process at any point therefore neither loses an alert nor raises it twice.
//
// Of an event from before the removal of what its endpoint had stored no alert is
// raised; those that were raised leave the stream (see package removal). The same
// event sent afterwards is another one.
//
// A batch that cannot be read, or that makes the engine panic or the process
// die five times, becomes a dead letter. While the stream ALERTS refuses
// messages, batches wait in EVENTS and are tried again.
package ruleengine
