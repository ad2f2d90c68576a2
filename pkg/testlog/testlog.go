// Package testlog keeps what a component or a program writes, for tests that
// look at it meanwhile.
package testlog

import (
	"bytes"
	"sync"
)

// Log is an io.Writer that can be read while it is written. The zero value is
// empty and ready.
type Log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write adds to the log. It never fails.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// String returns what has been written so far.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
