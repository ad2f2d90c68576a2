package message

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"math"
	"time"
)

const (
	// coarsest is the power of ten nanoseconds that the coarsest unit of times is,
	// a second. The finest is a nanosecond.
	coarsest = 9
	// maxSeconds are the seconds before and after 1970 that are carried, 145 years:
	// nanoseconds between any two of them are fewer than 64 bits hold.
	maxSeconds = math.MaxInt64/2/int64(time.Second) - 1
)

// appendTimes appends the times of events to dst, for each line of a batch its
// event's own time or the zero Time, in the coarsest unit that keeps them
// exact: the unit's power of ten nanoseconds in a byte, then for each line, as
// a uvarint, 0 without a time, and otherwise one more than the zigzag form of
// the difference to the time before, to 1970 for the first. Where a time is more
// than maxSeconds from 1970 it appends nothing.
func appendTimes(dst []byte, times []time.Time) []byte {
	power, unit := coarsest, int64(time.Second)
	for i := range times {
		at := &times[i]
		if at.IsZero() {
			continue
		}
		if s := at.Unix(); s < -maxSeconds || s > maxSeconds {
			return dst
		}
		for ns := int64(at.Nanosecond()); ns%unit != 0; unit /= 10 {
			power--
		}
	}
	dst = append(dst, byte(power))
	last := int64(0)
	for i := range times {
		if times[i].IsZero() {
			dst = append(dst, 0)
			continue
		}
		at := times[i].UnixNano() / unit
		delta := at - last
		last = at
		dst = binary.AppendUvarint(dst, 1+(uint64(delta)<<1^uint64(delta>>63)))
	}
	return dst
}

var errTimes = errors.New("times of events do not fit the lines")

// parseTimes reads what appendTimes made for count lines. Nothing are no times.
func parseTimes(b []byte, count int) ([]time.Time, error) {
	if len(b) == 0 {
		return nil, nil
	}
	if b[0] > coarsest || count > len(b)-1 {
		return nil, errTimes
	}
	unit := int64(math.Pow10(int(b[0])))
	most := maxSeconds * (int64(time.Second) / unit)
	times := make([]time.Time, count)
	last := int64(0)
	b = b[1:]
	for i := range times {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			return nil, errTimes
		}
		if b = b[n:]; v == 0 {
			continue
		}
		v--
		last += int64(v>>1) ^ -int64(v&1)
		if last > most || last < -most {
			return nil, errTimes
		}
		times[i] = time.Unix(0, last*unit).UTC()
	}
	if len(b) > 0 {
		return nil, errTimes
	}
	return times, nil
}

// timesHeader returns the value of HeaderTimes, empty when there is none.
func timesHeader(times []time.Time) string {
	return base64.RawURLEncoding.EncodeToString(appendTimes(nil, times))
}

// parseTimesHeader reads the value of HeaderTimes of a batch of count lines.
func parseTimesHeader(text string, count int) ([]time.Time, error) {
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return nil, err
	}
	return parseTimes(b, count)
}
