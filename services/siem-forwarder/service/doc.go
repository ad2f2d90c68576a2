// Package forwarder is the SIEM forwarder: it carries alerts from the stream
// ALERTS to what a SIEM listens on.
//
// It is a SIEM to the manager, with a SIEM's key and rights, and reads that
// SIEM's durable consumer. The consumer is its position: an alert is
// acknowledged when the target has taken it, or when the target has refused it
// for good and it is in the file of refused alerts on stable storage. So an
// alert is delivered at least once, it is never passed over, and the service
// needs no store of its own. While the target cannot be reached, the alerts in
// hand are kept from being delivered anew, the others wait in the stream, and
// the service is not ready.
//
// Several forwarders on one consumer share its alerts; one for each target
// needs a consumer, and so a name in the manager's setting siem, for each.
package forwarder
