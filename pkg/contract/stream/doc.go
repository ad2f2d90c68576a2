// Package stream holds the definitions of the streams, key-value buckets and
// object stores that make up Nightjar's record. Each has one owner, the only
// service that creates or changes it; everybody else binds to it.
package stream
