// Package bus connects a service to NATS: the connection itself, requests
// between services over the micro framework, and publishing that ends only
// when JetStream has the message on stable storage.
package bus
