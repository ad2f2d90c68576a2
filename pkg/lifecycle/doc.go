// Package lifecycle is how Nightjar's programs start, run and stop: the
// settings that all services share, logging, signals and exit codes.
//
// A service is a Component: made once with what it needs from outside, run
// until its context ends, and then stopped with its work in hand finished and
// its store closed. The same components run alone or together in standalone.
package lifecycle
