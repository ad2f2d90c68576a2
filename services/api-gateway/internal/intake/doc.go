// Package intake lets requests that come at once share writes to stable storage.
//
// Where more of them come than EVENTS can take one by one, batches of whatever
// endpoints are written to the stream INTAKE as one message, and are acknowledged
// when that is on stable storage. Within moments they are moved to EVENTS: what
// an endpoint sent meanwhile becomes one message on its own subject, and when
// that is on stable storage, too, the messages of INTAKE are deleted. Nobody but
// the gateways reads INTAKE.
//
// It owns the stream INTAKE, in which each process writes to a subject of its own.
// What a process that ended has left there, another one moves: the next at
// its start, or one that runs and sees it lie there. Then a batch may come
// to stand in EVENTS twice. That does no harm, as the identity of an event is
// that of its bytes, see docs/adr/0001.
package intake
