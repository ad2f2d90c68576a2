package e2e

import (
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// memoryLimit is what a manager under attack may have of memory of its own.
// What Badger maps of its files is the system's to give and take.
const memoryLimit = 1 << 30

// limitMemory has all managers of the test die when they want more memory
// than memoryLimit. It needs no privileges.
func limitMemory(t *testing.T) {
	plain := binary
	t.Cleanup(func() { binary = plain })
	limited := filepath.Join(t.TempDir(), "limited")
	script := fmt.Sprintf("#!/bin/sh\nulimit -d %d && exec %s \"$@\"\n", memoryLimit>>10, plain)
	if err := os.WriteFile(limited, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	binary = limited
}

// repeated is a text again and again, n bytes.
func repeated(text string, n int64) io.Reader {
	return io.LimitReader(&endless{block: bytes.Repeat([]byte(text), 16<<10)}, n)
}

type endless struct {
	block []byte
	at    int
}

// Read implements io.Reader.
func (e *endless) Read(p []byte) (int, error) {
	n := copy(p, e.block[e.at:])
	e.at = (e.at + n) % len(e.block)
	return n, nil
}

// bomb is much text in little gzip.
func bomb(t *testing.T, text string, n int64) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := io.Copy(w, repeated(text, n)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestBoundedMemory attacks a manager from many sides at once whose memory has
// a hard limit: it refuses what is too much and goes on working.
func TestBoundedMemory(t *testing.T) {
	limitMemory(t)
	p := &proc{t: t, dir: t.TempDir(), env: []string{"GOMEMLIMIT=512MiB"}}
	p.endWithTest()
	p.run()
	good, bad := p.enrol(), p.enrol()
	for b := range 5 {
		p.mustPost(good, batch(b, 400, time.Now().Add(-time.Hour))...)
	}
	zeros, braces := bomb(t, "0", 256<<20), bomb(t, "{}\n", 64<<20)
	deep := strings.Repeat(`{"a":[`, 512<<10)
	hash := strings.Repeat("ab", 32)
	const tooLarge = http.StatusRequestEntityTooLarge
	attacks := []struct {
		name, path string
		gzipped    bool
		body       func() io.Reader
		want       int
	}{
		{"gzip bomb, one line", "/logs", true, func() io.Reader { return bytes.NewReader(zeros) }, tooLarge},
		{"gzip bomb, many lines", "/logs", true, func() io.Reader { return bytes.NewReader(braces) }, tooLarge},
		{"gzip bomb, result", "/commands", true, func() io.Reader { return bytes.NewReader(zeros) }, tooLarge},
		{"a line without end", "/logs", false, func() io.Reader { return repeated("x", 64<<20) }, http.StatusOK},
		{"a million tiny lines", "/logs", false, func() io.Reader { return repeated("{}\n", 3_000_000) }, http.StatusOK},
		{"deep JSON", "/logs", false, func() io.Reader { return strings.NewReader(deep) }, http.StatusOK},
		{"deep result", "/commands", false, func() io.Reader { return strings.NewReader(deep) }, http.StatusOK},
		{"large value in a result", "/commands", false, func() io.Reader {
			return io.MultiReader(strings.NewReader(`{"args":["`), repeated("x", 64<<20))
		}, tooLarge},
		{"large upload", "/upload/dumps", false, func() io.Reader {
			return io.MultiReader(strings.NewReader(`{"uuid":"`+bad.UUID+`","guid":"{`+bad.UUID+`}","event-hash":"`+hash+`","filename":"`), repeated("x", 64<<20))
		}, tooLarge},
	}
	var all sync.WaitGroup
	for _, a := range attacks {
		for range 4 {
			all.Go(func() {
				resp, err := p.client.Do(p.request(bad, http.MethodPost, a.path, a.body(), a.gzipped))
				if err != nil {
					return // it may hang up in the middle of a body
				}
				defer func() { _ = resp.Body.Close() }()
				_, _ = io.Copy(io.Discard, resp.Body)
				if resp.StatusCode != a.want && resp.StatusCode != http.StatusServiceUnavailable {
					t.Errorf("%s: %s", a.name, resp.Status)
				}
			})
		}
	}
	all.Go(func() {
		p.hold(300, p.agent, "POST /logs HTTP/1.1\r\nHost: x\r\nUUID: "+bad.UUID+"\r\nApi-Key: "+bad.Key+"\r\nHostname: host-"+bad.UUID[:8]+"\r\nContent-Length: 1000000\r\n\r\n{")
	})
	all.Go(func() {
		p.hold(100, p.admin, "GET /endpoints/"+good.UUID+"/logs"+everything+" HTTP/1.1\r\nHost: x\r\nApi-Key: "+adminKey+"\r\n\r\n")
	})
	// Others are served meanwhile, be it after they were asked to come again.
	for b := 5; b < 10; b++ {
		eventually(t, "another endpoint is served", func() error {
			code, err := p.post(good, true, batch(b, 400, time.Now().Add(-time.Hour))...)
			if err == nil && code != http.StatusOK {
				err = fmt.Errorf("POST /logs: %d", code)
			}
			return err
		})
	}
	all.Wait()
	select {
	case <-p.exited:
		t.Fatalf("the manager has ended: %v", p.exit)
	default:
	}
	eventually(t, "ready", p.ready)
	eventually(t, "the events of the other endpoint", func() error {
		if n := len(p.events(good, "logs"+everything)); n != 10*400 {
			return fmt.Errorf("%d events, want %d", n, 10*400)
		}
		return nil
	})
	t.Logf("at most %d MiB in memory, mapped files included", p.peak()>>20)
}

// hold opens connections that begin a request and go no further, or take an
// answer no further than its first bytes, and closes them with the test.
func (p *proc) hold(n int, addr, request string) {
	addr = strings.TrimPrefix(addr, "https://")
	cfg := p.client.Transport.(*http.Transport).TLSClientConfig.Clone()
	cfg.ServerName = "127.0.0.1"
	for range n {
		raw, err := net.Dial("tcp", addr)
		if err != nil {
			p.t.Error(err)
			return
		}
		p.t.Cleanup(func() { _ = raw.Close() })
		c := tls.Client(raw, cfg)
		_, _ = io.WriteString(c, request)
	}
}
