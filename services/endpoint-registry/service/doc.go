// Package registry is the endpoint registry: who may talk to the manager.
//
// It owns the key-value bucket endpoints. Key <uuid> holds an endpoint's
// record, key seen.<partition> the time and address at which the endpoints of
// a partition were last heard of. It owns the bucket removed as well, which
// says of which endpoints everything that they had stored was removed for good
// and when (see package removal). It answers on edr.registry.> and reads
// nothing else, but asks where the streams end that hold what is removed.
//
// Every change is a compare-and-set on the bucket, so replicas may take
// requests side by side: of two that bind a hostname at once one wins and the
// other sees it. An answer to a change comes after this replica's view holds
// it and carries the revision of the bucket at which it is true. A read first
// catches up with the bucket, so it reflects every change acknowledged before
// it, whichever replica made it.
//
// Endpoints of another manager may be imported at start. What tells such an
// endpoint that was deleted from one that is new is the mark of the deletion,
// which the bucket keeps: marks must not be purged from it.
//
// The view is kept in Badger, and an index of it in memory that changes only
// after a commit. Both can be thrown away: the bucket has everything.
package registry
