// Package samples holds the small rule set and the simulated endpoints that
// Nightjar itself brings. They exist to show and to test the way of an event
// from an agent to a SIEM without any other data; they are no replacement for a
// maintained rule set.
//
// The rules ([Rules], [WriteRules]) are ordinary rule files: gene v2 form, one
// file in gene v1 form, and templates.toml with the expressions that several
// rules share. There is one filter rule, which keeps events and raises no alert.
// ATT&CK identifiers and tactics are those of ATT&CK v19, where Defense Evasion
// has become Stealth and Defense Impairment.
//
// The endpoints ([Endpoints]) are three Windows machines, in the shape that
// golang-evtx and WHIDS give to events, and one Linux machine in the shape of
// Kunai. Each tells one story of about thirty minutes. Most of its events are
// harmless, some set off rules, some were marked by the agent already, and some
// look like an attack and must stay silent. [Endpoint.Expected] names every
// alert that comes of a story under the rules of this package, so that whatever
// is missing and whatever is too much is a fault.
//
// Everything is invented. Hosts and domains are names reserved for
// documentation, and so are the addresses (192.0.2.0/24, 198.51.100.0/24 and
// 203.0.113.0/24); hash values belong to no file. The command lines resemble
// those of real attacks, so a virus scanner may object to the event files.
package samples
