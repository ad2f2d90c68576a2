// Package event is the event model of Nightjar: what an event is, how its
// time, its agent's mark and its identity are read from the bytes that an
// endpoint sent, and how a detection is added to these bytes.
//
// An event is one line of text that is one JSON object (RFC 8259). Nothing is
// ever decoded and encoded again: what is stored and handed out are the bytes
// that were sent, with a detection spliced in where there is one. Numbers,
// member order and unknown members therefore survive.
//
// The package keeps no state, writes nothing and never panics on input.
package event
