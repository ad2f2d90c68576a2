package gateway

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	kgzip "github.com/klauspost/compress/gzip"
)

// A range that is accepted can be expressed in RFC 3339, and a time that is
// given is the bound that it stands for.
func FuzzParseSpan(f *testing.F) {
	f.Add("2026-11-23T10:00:00.5Z", "", "", "")
	f.Add("", "2026-11-23T11:00:00+02:00", "", "")
	f.Add("", "", "0001-01-01T00:00:00Z", "-5s")
	f.Add("", "", "9999-12-31T23:59:59.999999999-23:59", "2562047h47m16.854775807s")
	f.Add("2026-11-23T10:00:00Z", "2026-11-23T09:00:00Z", "", "1h")
	now := time.Date(2026, 11, 23, 20, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, start, stop, pivot, delta string) {
		query := url.Values{"start": {start}, "stop": {stop}, "pivot": {pivot}, "delta": {delta}}
		got, err := parseSpan(&call{query: query}, now)
		if err != nil {
			if got != (span{}) {
				t.Fatalf("%v beside the error %v", got, err)
			}
			return
		}
		for _, bound := range []time.Time{got.start, got.stop} {
			if text, err := bound.MarshalText(); err != nil && !got.empty() {
				t.Fatalf("bound %s: %v", text, err)
			}
		}
		for given, bound := range map[string]time.Time{start: got.start, stop: got.stop} {
			want, err := time.Parse(time.RFC3339, given)
			if given == "" || start == stop {
				continue
			}
			if err != nil {
				t.Fatalf("%q was taken, but %v", given, err)
			}
			if !want.Equal(bound) && want.After(time.Time{}) && want.Before(latest) {
				t.Fatalf("%q became %s", given, bound)
			}
		}
		if start == "" && stop == "" && (pivot != "" || delta != "") && got.start.After(time.Time{}) && got.stop.Before(latest) {
			middle := got.start.Add(got.stop.Sub(got.start) / 2)
			want, err := time.Parse(time.RFC3339, pivot)
			if pivot == "" {
				want, err = now, nil
			}
			if width := got.stop.Sub(got.start).Abs(); err != nil || width < 1<<62 && middle.Sub(want).Abs() > 1 {
				t.Fatalf("%v is not around %s, %v", got, want, err)
			}
		}
	})
}

// reserved tells whether a header of gzip has a reserved bit, with which RFC 1952
// demands an error; compress/gzip does not look at them.
func reserved(body []byte) bool {
	zr, err := kgzip.NewReader(bytes.NewReader(body))
	if err == nil {
		_, err = io.Copy(io.Discard, zr)
	}
	return errors.Is(err, kgzip.ErrHeader)
}

// A gzip body is read as compress/gzip reads it, within its bounds.
func FuzzGzipBody(f *testing.F) {
	pack := func(data []byte) []byte {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, _ = w.Write(data)
		_ = w.Close()
		return b.Bytes()
	}
	whole := pack([]byte("{}\n[]\n"))
	f.Add(whole)
	f.Add(whole[:len(whole)-3])
	f.Add(append(bytes.Clone(whole), whole...))
	f.Add(append(bytes.Clone(whole), "no gzip"...))
	f.Add(pack(bytes.Repeat([]byte("a"), 3000)))
	f.Add([]byte("no gzip"))
	f.Add([]byte{})
	odd := bytes.Clone(whole)
	odd[3] |= 0x20
	f.Add(odd)
	const most = 2000
	f.Fuzz(func(t *testing.T, body []byte) {
		var want []byte
		zr, wantErr := gzip.NewReader(bytes.NewReader(body))
		if wantErr == nil {
			want, wantErr = io.ReadAll(io.LimitReader(zr, most+1))
		}
		r := httptest.NewRequest(http.MethodPost, "/rules", bytes.NewReader(body))
		r.Header.Set("Content-Encoding", "gzip")
		got, err := readBody(r, most)
		switch {
		case len(body) == 0 && err == nil && len(got) == 0: // nothing was sent, whatever the header says
		case wantErr != nil || len(want) > most:
			if err == nil {
				t.Fatalf("%d bytes, where %d and %v are expected", len(got), len(want), wantErr)
			}
		case err != nil && reserved(body):
		case err != nil || !bytes.Equal(got, want):
			t.Fatalf("%d bytes and %v, want %d", len(got), err, len(want))
		}
	})
}
