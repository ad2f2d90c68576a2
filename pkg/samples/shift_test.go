package samples

import (
	"bytes"
	"reflect"
	"regexp"
	"slices"
	"testing"
	"time"
)

var timeText = regexp.MustCompile(`"(SystemTime|UtcTime|utc_time)":"([^"]*)"`)

func TestShiftTo(t *testing.T) {
	targets := map[string]time.Time{
		"later":        time.Date(2031, 12, 31, 23, 59, 59, 999_999_999, time.UTC),
		"earlier":      time.Date(2019, 2, 28, 0, 0, 0, 0, time.UTC),
		"another zone": time.Date(2027, 6, 1, 1, 15, 0, 250_000_000, time.FixedZone("", 5*3600+45*60)),
		"before 1970":  time.Date(1960, 1, 1, 0, 0, 0, 1, time.UTC),
	}
	for name, target := range targets {
		t.Run(name, func(t *testing.T) {
			for _, ep := range Endpoints() {
				shifted := ep.ShiftTo(target)
				if len(shifted) != len(ep.Lines) {
					t.Fatalf("%s: %d lines became %d", ep.Hostname, len(ep.Lines), len(shifted))
				}
				last, _ := eventTime(shifted[len(shifted)-1])
				if !last.Equal(target) {
					t.Errorf("%s: last event at %v, want %v", ep.Hostname, last, target)
				}
				before, _ := eventTime(ep.Lines[len(ep.Lines)-1])
				for i := range shifted {
					checkShifted(t, ep.Lines[i], shifted[i], target.Sub(before))
				}
			}
		})
	}
}

// checkShifted compares the two lines with their times cut out, and each pair
// of times with the distance.
func checkShifted(t *testing.T, old, shifted []byte, by time.Duration) {
	t.Helper()
	blank := []byte(`"$1":""`)
	if !bytes.Equal(timeText.ReplaceAll(old, blank), timeText.ReplaceAll(shifted, blank)) {
		t.Errorf("more than the times differs:\n%s\n%s", old, shifted)
		return
	}
	was, is := timeText.FindAllSubmatch(old, -1), timeText.FindAllSubmatch(shifted, -1)
	if len(was) == 0 {
		t.Errorf("no time in %s", old)
	}
	for i := range was {
		layout, precision := time.RFC3339Nano, time.Nanosecond
		if string(was[i][1]) == "UtcTime" {
			layout, precision = "2006-01-02 15:04:05.000", time.Millisecond
		}
		from, err := time.Parse(layout, string(was[i][2]))
		if err != nil {
			t.Fatal(err)
		}
		to, err := time.Parse(layout, string(is[i][2]))
		if err != nil {
			t.Fatal(err)
		}
		if off := from.Add(by).Sub(to); off < 0 || off >= precision {
			t.Errorf("%s: %v moved by %v is not %v", was[i][1], from, by, to)
		}
	}
}

func TestShiftToLeavesEndpoint(t *testing.T) {
	ep, want := Endpoints()[0], Endpoints()[0]
	shifted := ep.ShiftTo(time.Unix(1_900_000_000, 0))
	for _, line := range shifted {
		clear(line)
	}
	if !reflect.DeepEqual(ep, want) {
		t.Error("the endpoint changed")
	}
}

func TestShiftToItself(t *testing.T) {
	for _, ep := range Endpoints() {
		last, _ := eventTime(ep.Lines[len(ep.Lines)-1])
		if got := ep.ShiftTo(last); !slices.EqualFunc(got, ep.Lines, bytes.Equal) {
			t.Errorf("%s: lines changed", ep.Hostname)
		}
	}
}

func TestShiftToForeignLines(t *testing.T) {
	at := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	tests := map[string]struct{ lines, want []string }{
		"none": {},
		"no time": {
			lines: []string{`{}`, ``, `{"SystemTime":7}`, `{"SystemTime":"`},
			want:  []string{`{}`, ``, `{"SystemTime":7}`, `{"SystemTime":"`},
		},
		"no time beside a time": {
			lines: []string{`{"SystemTime":"yesterday"}`, `{"utc_time":"2020-01-01T00:00:00Z"}`},
			want:  []string{`{"SystemTime":"yesterday"}`, `{"utc_time":"2030-01-01T00:00:00Z"}`},
		},
		"out of order": {
			lines: []string{`{"SystemTime":"2020-01-01T00:00:02Z"}`, `{"SystemTime":"2020-01-01T00:00:01Z"}`},
			want:  []string{`{"SystemTime":"2030-01-01T00:00:00Z"}`, `{"SystemTime":"2029-12-31T23:59:59Z"}`},
		},
		"key inside a value": {
			lines: []string{`{"a":"\"UtcTime\":\"2020-01-01 00:00:00.000\"","SystemTime":"2020-01-01T00:00:00Z"}`},
			want:  []string{`{"a":"\"UtcTime\":\"2020-01-01 00:00:00.000\"","SystemTime":"2030-01-01T00:00:00Z"}`},
		},
		"longer key": {
			lines: []string{`{"CreationUtcTime":"2020-01-01 00:00:00.000","SystemTime":"2020-01-01T00:00:00Z"}`},
			want:  []string{`{"CreationUtcTime":"2020-01-01 00:00:00.000","SystemTime":"2030-01-01T00:00:00Z"}`},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var ep Endpoint
			for _, line := range tt.lines {
				ep.Lines = append(ep.Lines, []byte(line))
			}
			var got []string
			for _, line := range ep.ShiftTo(at) {
				got = append(got, string(line))
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
