package samples

import (
	"bytes"
	"time"
)

// sysmonLayout is how Sysmon writes UtcTime: no zone, always three digits of a
// second.
const sysmonLayout = "2006-01-02 15:04:05.000"

// timeMembers are the members that hold the time of an event. The first of them
// that stands in a line is the one that orders events. A quotation mark inside a
// JSON string is escaped, so none of these keys is ever found inside a value.
var timeMembers = []struct {
	key    []byte
	layout string
}{
	{[]byte(`"SystemTime":"`), time.RFC3339Nano},
	{[]byte(`"utc_time":"`), time.RFC3339Nano},
	{[]byte(`"UtcTime":"`), sysmonLayout},
}

// ShiftTo returns the lines of the endpoint moved in time so that the last event
// happens at t; the distances between events stay as they are. In each line the
// values of SystemTime, UtcTime and, for Kunai, utc_time are replaced, in UTC
// and each in the form it had: RFC 3339 with as many digits of a second as the
// time needs, and Sysmon's form cut to milliseconds. All other bytes stay the
// same, and the endpoint is not changed.
//
// A value that is no time stays as it is. Without any event that has a time the
// lines come back unchanged. The move spans at most 292 years, the range of
// [time.Duration]; a t further away is not reached.
func (e Endpoint) ShiftTo(t time.Time) [][]byte {
	last, ok := e.lastTime()
	if !ok {
		return e.shift(0)
	}
	return e.shift(t.Sub(last))
}

func (e Endpoint) lastTime() (last time.Time, ok bool) {
	for _, line := range e.Lines {
		if t, found := eventTime(line); found && (!ok || t.After(last)) {
			last, ok = t, true
		}
	}
	return last, ok
}

func (e Endpoint) shift(by time.Duration) [][]byte {
	out := make([][]byte, len(e.Lines))
	for i, line := range e.Lines {
		out[i] = shiftLine(line, by)
	}
	return out
}

// eventTime returns the time by which the event of line is ordered.
func eventTime(line []byte) (time.Time, bool) {
	for _, m := range timeMembers {
		start, end, ok := findValue(line, m.key)
		if !ok {
			continue
		}
		if t, err := time.Parse(m.layout, string(line[start:end])); err == nil {
			return t, true
		}
	}
	return time.Time{}, false
}

// shiftLine returns a copy of line with all its time members moved.
func shiftLine(line []byte, by time.Duration) []byte {
	out := bytes.Clone(line)
	if by == 0 {
		return out
	}
	for _, m := range timeMembers {
		start, end, ok := findValue(out, m.key)
		if !ok {
			continue
		}
		t, err := time.Parse(m.layout, string(out[start:end]))
		if err != nil {
			continue
		}
		moved := t.Add(by).UTC().AppendFormat(nil, m.layout)
		out = append(append(append([]byte(nil), out[:start]...), moved...), out[end:]...)
	}
	return out
}

// findValue returns where the value of the first member with that key begins
// and ends.
func findValue(line, key []byte) (start, end int, ok bool) {
	i := bytes.Index(line, key)
	if i < 0 {
		return 0, 0, false
	}
	start = i + len(key)
	n := bytes.IndexByte(line[start:], '"')
	if n < 0 {
		return 0, 0, false
	}
	return start, start + n, true
}
