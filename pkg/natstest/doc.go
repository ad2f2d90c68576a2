// Package natstest starts real NATS servers with JetStream for tests, in
// process, each with a store of its own in the test's temporary folder.
package natstest
