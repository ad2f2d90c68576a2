// Package alert reads a message of the stream ALERTS into what formats for
// SIEMs need: who, where, when, which rules, and the few dozen facts of the
// event that every such format has a place for.
//
// It knows the events of Windows (Sysmon, Security and others, as WHIDS sends
// them) and of Kunai. Any other JSON object is an alert as well, with fewer
// facts. Nothing is guessed: a member of an unexpected type is left out, and
// the whole event stays in Payload.
package alert
