package logstore

import (
	"cmp"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"
)

// hour is the length of a bucket in seconds; a chunk stays within one.
const hour = 3600

// hourLength is the number of nanoseconds of an hour.
const hourLength = hour * int64(time.Second)

// ErrCursor means that a cursor was not made by Pos.Cursor.
var ErrCursor = errors.New("malformed cursor")

// Pos is the place of a line among those of its endpoint.
type Pos struct {
	// Hour is the number of whole hours from the Unix epoch to the line's
	// time, negative before it, and Off the nanoseconds from there on.
	Hour, Off int64
	// Arrival orders lines of the same time.
	Arrival uint64
}

// At returns the position of a line with time t.
func At(t time.Time, arrival uint64) Pos {
	s := t.Unix()
	h := s / hour
	if s%hour < 0 {
		h--
	}
	return Pos{Hour: h, Off: (s-h*hour)*int64(time.Second) + int64(t.Nanosecond()), Arrival: arrival}
}

// Beginning returns the position before every line.
func Beginning() Pos { return Pos{Hour: math.MinInt64} }

// End returns the position behind every line.
func End() Pos {
	return Pos{Hour: math.MaxInt64, Off: hourLength - 1, Arrival: math.MaxUint64}
}

// Time returns the time of the position in UTC.
func (p Pos) Time() time.Time {
	return time.Unix(p.Hour*hour+p.Off/int64(time.Second), p.Off%int64(time.Second)).UTC()
}

// Compare returns a negative number when p stands before o, a positive one
// when it stands behind it, and 0 when they are the same.
func (p Pos) Compare(o Pos) int {
	if c := cmp.Compare(p.Hour, o.Hour); c != 0 {
		return c
	}
	if c := cmp.Compare(p.Off, o.Off); c != 0 {
		return c
	}
	return cmp.Compare(p.Arrival, o.Arrival)
}

// sameTime tells whether both positions have the same time.
func (p Pos) sameTime(o Pos) bool { return p.Hour == o.Hour && p.Off == o.Off }

const (
	cursorVersion = 1
	cursorLength  = 1 + 3*8
)

// Cursor returns the position as opaque text.
func (p Pos) Cursor() string {
	b := make([]byte, 1, cursorLength)
	b[0] = cursorVersion
	b = appendSigned(b, p.Hour)
	b = binary.BigEndian.AppendUint64(b, uint64(p.Off))
	b = binary.BigEndian.AppendUint64(b, p.Arrival)
	return base64.RawURLEncoding.EncodeToString(b)
}

// ParseCursor reads what Pos.Cursor wrote. Its errors wrap ErrCursor.
func ParseCursor(s string) (Pos, error) {
	if len(s) > base64.RawURLEncoding.EncodedLen(cursorLength) {
		return Pos{}, fmt.Errorf("%w: too long", ErrCursor)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	switch {
	case err != nil:
		return Pos{}, fmt.Errorf("%w: %w", ErrCursor, err)
	case len(b) != cursorLength || b[0] != cursorVersion:
		return Pos{}, fmt.Errorf("%w: unknown form", ErrCursor)
	}
	p := Pos{Hour: signed(b[1:]), Off: int64(binary.BigEndian.Uint64(b[9:])), Arrival: binary.BigEndian.Uint64(b[17:])}
	if p.Off < 0 || p.Off >= hourLength {
		return Pos{}, fmt.Errorf("%w: no time", ErrCursor)
	}
	return p, nil
}

// appendSigned appends n such that the bytes sort as the numbers do.
func appendSigned(b []byte, n int64) []byte {
	return binary.BigEndian.AppendUint64(b, uint64(n)^(1<<63))
}

// signed reads what appendSigned wrote.
func signed(b []byte) int64 { return int64(binary.BigEndian.Uint64(b) ^ (1 << 63)) }
