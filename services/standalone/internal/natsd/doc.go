// Package natsd runs the NATS server that standalone embeds: JetStream on a
// folder, one NKey user for each service and each SIEM, and nobody else.
// It sets the server's clock itself, more seldom than the server does, see
// docs/adr/0028.
package natsd
