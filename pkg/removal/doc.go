// Package removal is how a service obeys the removal of what an endpoint has
// stored.
//
// The bucket removed has a record of each endpoint whose last removal there
// was, see message.RemovalRecord. Removals are a view of it: a service that
// keeps something of endpoints acts by each record before the view has passed
// it, and a store that is built again obeys all of them. What the service owns
// in JetStream it clears afterwards; that this is to be done stands in the
// store until it is done, whatever crashes when.
//
// Nothing depends on the order in which a service learns of removals and of
// messages. A message tells by its generation whether it was written before or
// after a removal, and one that was written before it is passed over whenever
// it comes.
package removal
