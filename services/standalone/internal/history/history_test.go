package history

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
)

const endpoint = "ffffffff-1111-0000-0000-000000000001"

func TestSent(t *testing.T) {
	const data = `"EdrData":{"Endpoint":{"UUID":"u"},"Event":{"Hash":"a}","Detection":true}}`
	for line, want := range map[string]string{
		`{"Event":{"A":1}}`:                       `{"Event":{"A":1}}`,
		`{"Event":{"A":1,` + data + `}}`:          `{"Event":{"A":1,` + data + `}}`,
		`17:{"Event":{"A":1}}`:                    `{"Event":{"A":1}}`,
		`-62135596800000000000:{"A":1}`:           `{"A":1}`,
		`17:{"Event":{"A":1,` + data + `}}`:       `{"Event":{"A":1}}`,
		`17:{"Event":{` + data + `,"A":1}}`:       `{"Event":{"A":1}}`,
		`17:{"Event":{` + data + `}}`:             `{"Event":{}}`,
		`17:{"Event":{"A":1,"B":{` + data + `}}}`: `{"Event":{"A":1,"B":{` + data + `}}}`,
		`17:{"Event":{"A":1, "EdrData" : {}}}`:    `{"Event":{"A":1, "EdrData" : {}}}`,
		`17:{"Event":{"A":1,"EdrData":{`:          `{"Event":{"A":1,"EdrData":{`,
		`17:no json`:                              `17:no json`,
		`:{"A":1}`:                                `:{"A":1}`,
		`1x:{"A":1}`:                              `1x:{"A":1}`,
		``:                                        ``,
		`17:`:                                     `17:`,
	} {
		if got := string(sent([]byte(line))); got != want {
			t.Errorf("%s gives %s, want %s", line, got, want)
		}
	}
}

// FuzzSent takes off what was added, whatever the event, and makes no event
// of what is none.
func FuzzSent(f *testing.F) {
	f.Add([]byte(`{"Event":{"A":1}}`))
	f.Add([]byte(`{"Event":{"EdrData":{"A":1},"B":2}}`))
	f.Add([]byte(`{"a":{}}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		got := sent(append([]byte("17:"), line...))
		if _, err := event.Scan(line); err != nil {
			if _, err := event.Scan(got); err == nil {
				t.Fatalf("%q became the event %q", line, got)
			}
			return
		}
		if _, err := event.Scan(got); err != nil && line[0] == '{' {
			t.Fatalf("%q became %q, which is no event", line, got)
		}
	})
}

// door is an admin API that answers as the test wants.
func door(t *testing.T, h http.HandlerFunc) *run {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	a := newAPI(at(t, s.URL), "key", nil)
	out, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = out.Close() })
	r := &run{job: &job{api: a}, part: wholeDump, progress: newProgress(out)}
	a.say = r.say
	return r
}

// at parses a URL.
func at(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func answerOK(w http.ResponseWriter) {
	_, _ = io.WriteString(w, `{"data":null,"message":"OK","error":""}`)
}

func TestPost(t *testing.T) {
	for name, c := range map[string]struct {
		answers []int // 0 breaks the connection off, 1 is an error in an envelope
		retry   string
		waits   []time.Duration
		want    error
	}{
		"at once":              {[]int{200}, "", nil, nil},
		"busy for a while":     {[]int{503, 429, 200}, "7", []time.Duration{7 * time.Second, 7 * time.Second}, nil},
		"busy, not for an age": {[]int{503, 200}, "7200", []time.Duration{maxPause}, nil},
		"broken off":           {[]int{0, 0, 0, 200}, "", []time.Duration{time.Second, 2 * time.Second, 4 * time.Second}, nil},
		"full for good": {[]int{503}, "60", slices.Repeat([]time.Duration{time.Minute}, 5),
			errors.New("the manager has stored nothing for 5m0s: said 503")},
		"conflict":   {[]int{409}, "", nil, errConflict},
		"refused":    {[]int{400}, "", nil, errRefused},
		"not known":  {[]int{1}, "", nil, errors.New("Unknown endpoint: x")},
		"forbidden":  {[]int{403}, "", nil, errors.New("403 Forbidden: said 403")},
		"not for us": {[]int{2}, "", nil, errors.New("does not answer as a manager's admin API")},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int32 // a connection that is broken off orders nothing
			r := door(t, func(w http.ResponseWriter, req *http.Request) {
				if body, err := io.ReadAll(req.Body); string(body) != "body" || err != nil || req.Header.Get("Api-Key") != "key" {
					t.Errorf("got %q, %v, %v", body, err, req.Header)
				}
				n := int(asked.Add(1)) - 1
				code := c.answers[min(n, len(c.answers)-1)]
				switch code {
				case 0:
					panic(http.ErrAbortHandler)
				case 1:
					_, _ = io.WriteString(w, `{"data":null,"message":"NOK","error":"Unknown endpoint: x"}`)
				case 2:
					_, _ = io.WriteString(w, `<html>`)
				case 200:
					answerOK(w)
				default:
					if c.retry != "" {
						w.Header().Set("Retry-After", c.retry)
					}
					http.Error(w, fmt.Sprint("said ", code), code)
				}
			})
			var waits []time.Duration
			r.api.pause = func(_ context.Context, d time.Duration) error { waits = append(waits, d); return nil }
			err := r.api.post(t.Context(), "/x", false, func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("body")), nil })
			if (err == nil) != (c.want == nil) || c.want != nil && !errors.Is(err, c.want) && !strings.Contains(err.Error(), c.want.Error()) {
				t.Errorf("%v, want %v", err, c.want)
			}
			if !slices.Equal(waits, c.waits) {
				t.Errorf("waited %v, want %v", waits, c.waits)
			}
		})
	}
}

// TestTrust accepts the manager's own certificate whatever its name, and
// what it has signed for the name that is asked alone.
func TestTrust(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"data":[],"message":"OK","error":""}`)
	}))
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	t.Cleanup(s.Close)
	own := s.Certificate()
	other := &x509.Certificate{Raw: []byte("another")}
	unnamed := strings.Replace(s.URL, "127.0.0.1", "localhost", 1) // a name that is not in it
	for name, c := range map[string]struct {
		url     string
		trusted []*x509.Certificate
		ok      bool
	}{
		"own":                {s.URL, []*x509.Certificate{own}, true},
		"own, without name":  {unnamed, []*x509.Certificate{other, own}, true},
		"another":            {s.URL, []*x509.Certificate{other}, false},
		"that of the system": {s.URL, nil, false},
	} {
		err := list(t.Context(), newAPI(at(t, c.url), "key", c.trusted), "/x", func(struct{}) {})
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTrustAuthority accepts what an authority has signed for the address that
// is asked, and nothing that it has signed for another one.
func TestTrustAuthority(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(template, parent *x509.Certificate) *x509.Certificate {
		template.SerialNumber, template.NotAfter = big.NewInt(1), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	root := &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	ca := sign(root, root)
	for ip, want := range map[string]bool{"127.0.0.1": true, "127.0.0.2": false} {
		leaf := sign(&x509.Certificate{IPAddresses: []net.IP{net.ParseIP(ip)}}, ca)
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"data":[],"message":"OK","error":""}`)
		}))
		s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}}}
		s.StartTLS()
		err := list(t.Context(), newAPI(at(t, s.URL), "key", []*x509.Certificate{ca}), "/x", func(struct{}) {})
		s.Close()
		if (err == nil) != want {
			t.Errorf("certificate for %s: %v", ip, err)
		}
	}
}

func TestList(t *testing.T) {
	for body, want := range map[string]string{
		`{"data":[{"uuid":"a"},{"uuid":"b"}],"message":"OK","error":""}`: "a b <nil>",
		`{"data":[],"message":"OK","error":""}`:                          " <nil>",
		`{"data":null,"message":"NOK","error":"no room"}`:                " GET /x: no room",
		`{"data":[{"uuid":"a"},`:                                         "a GET /x: EOF",
		`{"data":[{"uuid":"a"}]`:                                         "a GET /x: EOF",
		`[]`:                                                             " GET /x: not an answer of a manager's admin API",
	} {
		r := door(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) })
		var got []string
		err := list(t.Context(), r.api, "/x", func(e struct{ UUID string }) { got = append(got, e.UUID) })
		if text := strings.Join(got, " ") + " " + fmt.Sprint(err); text != want {
			t.Errorf("%s gives %q, want %q", body, text, want)
		}
	}
}

// TestLargeDump sends a file larger than one piece in parts that make it up.
func TestLargeDump(t *testing.T) {
	var got []byte
	var heads []string
	r := door(t, func(w http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodGet {
			_, _ = io.WriteString(w, `{"data":[],"message":"OK","error":""}`)
			return
		}
		var u map[string]any
		if err := json.NewDecoder(req.Body).Decode(&u); err != nil {
			t.Errorf("part %d: %v", len(heads)+1, err)
		}
		content, err := base64.StdEncoding.DecodeString(u["content"].(string))
		if err != nil {
			t.Error(err)
		}
		got = append(got, content...)
		heads = append(heads, fmt.Sprint(u["filename"], u["guid"], u["event-hash"], u["chunk"], u["total"]))
		answerOK(w)
	})
	const guid, hash = "515cd0d1-ab35-60e4-827c-000000004e00", "2252cc3dee2623a44f5d1644338129b9"
	dir := filepath.Join(t.TempDir(), endpoint, "{"+guid+"}", hash)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("0123456789abcdef"), (1<<10+160)/16)
	for name, content := range map[string][]byte{"large.dmp": want, "small": []byte("small")} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all, other, err := findDumps(filepath.Dir(filepath.Dir(filepath.Dir(dir))))
	if err != nil || len(other) > 0 || len(all) != 1 {
		t.Fatalf("found %+v, %v, %v", all, other, err)
	}
	r.part = 1 << 10
	if err := r.importDumps(t.Context(), all[0]); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, append(want, "small"...)) {
		t.Errorf("%d bytes came, want %d", len(got), len(want)+5)
	}
	if wantHeads := []string{"large.dmp{" + guid + "}" + hash + "1 2", "large.dmp{" + guid + "}" + hash + "2 2", "small{" + guid + "}" + hash + "<nil> <nil>"}; !slices.Equal(heads, wantHeads) {
		t.Errorf("heads are %q, want %q", heads, wantHeads)
	}
	if r.count.dumps != 2 || r.count.dumpBytes != int64(len(got)) {
		t.Errorf("counted %+v", r.count)
	}
}

// TestBodies cuts many lines into bodies of bounded size, and counts them when
// they are stored, not before.
func TestBodies(t *testing.T) {
	posts := 0
	fail := false
	r := door(t, func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		if posts++; fail {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		answerOK(w)
	})
	line := `{"text":"` + strings.Repeat("x", 1<<20-11) + `"}`
	path := filepath.Join(t.TempDir(), "logs.gz")
	pack(t, path, slices.Repeat([]string{line}, 9)...)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	size := info.Size()
	f := &found{endpoint: endpoint, files: []file{{path: path, size: size}, {path: path + "gone", size: size}, {path: path, size: size, alerts: true}}}
	if err := r.importLogs(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	// 9 lines of the logs and 9 of the alerts, eight to a body.
	if c := r.count; posts != 3 || c.lines.events != 9 || c.lines.alerts != 9 || c.logs != 2 || c.unreadable != 1 || r.progress.files != 3 || r.progress.bytes != 3*size {
		t.Errorf("%d bodies, counted %+v, %d bytes of %d files done", posts, c, r.progress.bytes, r.progress.files)
	}
	fail = true
	if err := r.importLogs(t.Context(), f); err == nil || r.count.lines.events != 9 {
		t.Errorf("%v, counted %+v", err, r.count)
	}
}

// pack writes lines into a file of one gzip member.
func pack(t *testing.T, path string, lines ...string) {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	for _, l := range lines {
		if _, err := io.WriteString(w, l+"\n"); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}
