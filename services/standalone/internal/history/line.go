package history

import (
	"bytes"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
)

// sent returns the line that an agent sent of a line that stands in a log.
//
// The WHIDS manager that agents of the old headers talk to writes what it was
// sent, encoded anew, which changes nothing of what its own agents encode. Its
// later pre-releases put the time and a colon before it and add the member
// EdrData at the end of Event; only what they added is taken off. Nothing is
// taken off a line without the time, for it was sent so.
func sent(line []byte) []byte {
	time, rest, _ := bytes.Cut(line, []byte{':'})
	if len(rest) == 0 || rest[0] != '{' || !isNumber(time) {
		return line
	}
	info, err := event.Scan(rest)
	if err != nil || !info.EdrData.Present() {
		return rest
	}
	// Go writes no white space, so the member's name stands right before it.
	const name = `"EdrData":`
	before, after := rest[:info.EdrData.Start], rest[info.EdrData.End:]
	if !bytes.HasSuffix(before, []byte(name)) {
		return rest
	}
	before = before[:len(before)-len(name)]
	switch {
	case bytes.HasSuffix(before, []byte{','}):
		before = before[:len(before)-1]
	case bytes.HasPrefix(after, []byte{','}):
		after = after[1:]
	}
	return append(bytes.Clone(before), after...)
}

// isNumber tells whether b is a decimal number.
func isNumber(b []byte) bool {
	b = bytes.TrimPrefix(b, []byte{'-'})
	for _, c := range b {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(b) > 0
}
