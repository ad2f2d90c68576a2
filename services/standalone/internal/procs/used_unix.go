//go:build unix

package procs

import (
	"syscall"
	"time"
)

// used returns the CPU time that the process has used, and whether it is known.
func used() (time.Duration, bool) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0, false
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), true
}
