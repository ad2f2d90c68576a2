// Package store opens the Badger stores of Nightjar's services. A store is a
// view of what JetStream holds: it can be deleted while its service is
// stopped, and is built again at the next start.
package store
