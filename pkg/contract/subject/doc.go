// Package subject holds the names that Nightjar uses on NATS: subjects,
// severities and partitions. They are a contract with everybody outside and
// change only with a note in CHANGELOG.md.
//
// Only tokens that are safe within a subject are ever put into one: UUIDs,
// numbers and fixed words.
package subject
