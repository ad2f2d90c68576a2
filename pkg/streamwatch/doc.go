// Package streamwatch tells in metrics how full the streams of a service are.
// Only their owner watches them, so that each stream is told of by one
// service.
package streamwatch
