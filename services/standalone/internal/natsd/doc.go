// Package natsd runs the NATS server that standalone embeds: JetStream on a
// folder, one NKey user for each service and each SIEM, and nobody else.
package natsd
