// Package failpoint marks the places at which crash tests end the process.
//
// Without the build tag failpoint, as every released program is built, Hit is
// an empty function that the compiler removes and nothing reads the
// environment. With it, the variable NIGHTJAR_FAILPOINTS arms points:
//
//	NIGHTJAR_FAILPOINTS="rule-engine/alerts-before-ack=kill@3,view/before-commit:raised=sleep(50ms)"
//
// What follows the name is what happens, and after an @ at which hit of the
// point, counted from 1; without it at the first. A point acts once.
//
//	kill        the process ends as by kill -9
//	exit        the process ends with code 3, nothing is closed
//	panic       the goroutine panics
//	note        nothing but the line on standard error that every action writes
//	sleep(D)    the goroutine sleeps for the duration D
//
// All points are listed in this package. A point that is not listed, or whose
// action cannot be read, ends the program before it begins.
package failpoint
