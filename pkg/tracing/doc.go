// Package tracing makes OpenTelemetry traces of what goes through Nightjar and
// hands them to a collector over OTLP/HTTP. Without an endpoint there is
// nothing: no goroutine, no allocation, no byte on the wire.
//
// A trace begins with a request to the gateway. From there the W3C trace
// context travels in the header traceparent of NATS messages, which batches of
// events and alerts have whether traces are made or not. It says which spans
// belong together and decides nothing: who may do what never depends on it.
//
// A span says what was done, for which endpoint, how much and how long. It
// holds no key, no content of an event or a command, and no text of an error.
package tracing
