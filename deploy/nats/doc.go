// Command nats prepares a NATS server, or a cluster of them, for Nightjar's
// services running apart: it makes an NKey user for each service and SIEM and
// for those who back up and restore, writes the configuration of nats-server
// that gives each user the rights it needs and no more, and prints the users'
// keys as Kubernetes secrets.
//
// nats-server.conf and nats-cluster.conf in this folder are what it writes for
// one SIEM called siem. The rights come from package access, where those of
// the embedded server come from, too; a test holds the files to it.
package main
