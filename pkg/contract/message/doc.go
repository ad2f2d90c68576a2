// Package message holds the messages that Nightjar's services exchange over
// NATS: batches of events, alerts, dead letters, the records in key-value
// buckets, and the requests and answers of the services.
//
// The forms are pinned by golden samples in testdata. A form changes only
// together with its number in the header Nightjar-Format.
package message
