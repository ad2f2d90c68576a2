// Package target hands encoded alerts to a SIEM: to standard output or a file,
// to a syslog receiver over TCP or TLS, or to an HTTP endpoint.
//
// A target says of each record whether it has been taken, is refused for good,
// or is to be sent again. It says "taken" only after the other side has said
// so, as far as its protocol has a way to say it; what that is worth differs,
// and each target's comment states it.
package target
