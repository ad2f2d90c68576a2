// Package gateway is Nightjar's only door: the admin API for operators and
// the agent API for endpoints, both over HTTP.
//
// It owns the streams INTAKE, EVENTS, DEADLETTER and AUDIT and the bucket access. It
// reads the buckets endpoints, removed and rules and the object store containers, and
// asks the other services over NATS for everything else. Its Badger store is a
// view of who may talk to the manager: operators and endpoints with the hashes
// of their keys. It is held in memory as well, so a request is authorised
// without leaving the process.
//
// What it guarantees:
//
//   - POST /logs answers 200 when every line is on stable storage, as an
//     event in EVENTS or INTAKE or as a dead letter in DEADLETTER, and not
//     before. What is in INTAKE is moved to EVENTS within moments, by
//     whichever gateway runs. What cannot be stored is refused with 503 and
//     Retry-After; part of a refused request may be stored, and repeating it
//     counts nothing twice.
//   - Memory does not grow with the size of a body or of an answer. A body is
//     cut into batches while it comes in; an answer is asked for page by page
//     while it goes out.
//   - An answer of the admin API is exactly one JSON document. When a
//     streamed answer fails in the middle the connection is broken off, so
//     that nobody takes a part for the whole.
//   - A new endpoint is known to the gateway that answered its creation. The
//     other replicas learn of it through their views, usually within
//     milliseconds; until then they answer 403, and the agent tries again.
//   - A deletion is answered when no gateway answers the endpoint any more,
//     and the release of a hostname when every gateway acts by it. A gateway
//     that has not been able for 5 seconds to make sure which endpoints exist
//     answers agents 503.
//   - The removal of what an endpoint had stored is answered when every gateway
//     acts by it, so that what comes from then on is of another generation, and
//     when the streams are cleared. One that is recorded is brought to its end.
//   - The lines of a container that an agent gets are those of the SHA-256 it
//     is told. A container that is being replaced may be answered with 503
//     until the new one has been read.
//   - Ingest has its own bound of memory and of CPU, apart from polls.
package gateway
