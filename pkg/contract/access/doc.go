// Package access holds who may do what on NATS: one NKey user for each
// service and each SIEM, each with the least it needs. The embedded server of
// standalone and the shipped server configuration are both made from it.
package access
