// Package manager is Nightjar in one process: the NATS server embedded, all
// six services beside it, each with its own NATS user and its own store, just
// as they run apart.
//
// It owns the data folder: the lock on it, the certificate, the keys of the
// SIEMs and the limit on its size. It stops from the door inwards: first the
// gateway finishes the requests in hand, then the services, then NATS.
package manager
