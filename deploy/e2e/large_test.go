package e2e

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestLargeFiles drops a file of 100 MB on an endpoint, takes one of that size
// from it, and hands it to the operator in every form, without the manager
// holding it in memory.
func TestLargeFiles(t *testing.T) {
	const size = 100 << 20
	drops := t.TempDir()
	f, err := os.Create(filepath.Join(drops, "tool"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(f, pattern{}, size); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	p := start(t, t.TempDir(), "--tls", "off", "--drop-dir", drops)
	e := p.enrol()
	url := p.admin + "/endpoints/" + e.UUID
	admin := func(method, url string, body io.Reader) *http.Request {
		req, err := http.NewRequest(method, url, body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Api-Key", adminKey)
		return req
	}
	before := p.resetPeak()

	p.pass("POST of a command", admin(http.MethodPost, url+"/command", strings.NewReader(`{"command-line":"tool","drop-files":["tool"]}`)), `"data":"`, size, true)
	p.pass("poll", p.request(e, http.MethodGet, "/commands", nil, false), `"data":"`, size, true)

	upload := func(name string, content func(io.Writer) error) {
		t.Helper()
		r, w := io.Pipe()
		go func() {
			fmt.Fprintf(w, `{"filename":%q,"guid":"{%s}","event-hash":%q,"content":"`, name, processGUID, eventHash)
			enc := base64.NewEncoder(base64.StdEncoding, w)
			err := content(enc)
			_ = enc.Close()
			_, _ = io.WriteString(w, `"}`)
			w.CloseWithError(err)
		}()
		if code, text := p.upload(e, r, false); code != http.StatusOK {
			t.Fatalf("upload of %s: %d %s", name, code, text)
		}
	}
	upload("plain", func(w io.Writer) error {
		_, err := io.CopyN(w, pattern{}, size)
		return err
	})
	upload("packed.gz", func(w io.Writer) error {
		z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
		if err != nil {
			return err
		}
		if _, err := io.CopyN(z, pattern{}, size); err != nil {
			return err
		}
		return z.Close()
	})
	files := url + "/artifacts/" + processGUID + "/" + eventHash + "/"
	p.pass("download", admin(http.MethodGet, files+"plain", nil), `"data":"`, size, true)
	p.pass("raw download", admin(http.MethodGet, files+"plain?raw=true", nil), "", size, false)
	p.pass("gunzipped download", admin(http.MethodGet, files+"packed.gz?gunzip=true", nil), `"data":"`, size, true)
	p.pass("raw gunzipped download", admin(http.MethodGet, files+"packed.gz?gunzip=true&raw=true", nil), "", size, false)
	// Held in memory, it would be there twice: as it is, and in base64.
	if grown := p.peak() - before; grown > 2*size {
		t.Errorf("the manager grew by %d MiB", grown>>20)
	}
}

// pass makes a request and demands that the answer has, behind some text, the
// pattern in a size, where told as a string in base64.
func (p *proc) pass(what string, req *http.Request, behind string, size int64, encoded bool) {
	p.t.Helper()
	resp, err := p.client.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		p.t.Fatalf("%s: %s", what, resp.Status)
	}
	body := bufio.NewReader(resp.Body)
	for head := ""; !strings.HasSuffix(head, behind); {
		c, err := body.ReadByte()
		if err != nil || len(head) > 1<<12 {
			p.t.Fatalf("%s: answer begins with %q, %v", what, head, err)
		}
		head += string(c)
	}
	content := io.Reader(body)
	if encoded {
		content = base64.NewDecoder(base64.StdEncoding, io.LimitReader(body, int64(base64.StdEncoding.EncodedLen(int(size)))))
	}
	want, got := make([]byte, 1<<16), make([]byte, 1<<16)
	read := int64(0)
	for {
		n, err := io.ReadFull(content, got)
		_, _ = pattern{}.Read(want)
		if !bytes.Equal(got[:n], want[:n]) {
			p.t.Fatalf("%s: other bytes than were sent, after %d", what, read)
		}
		if read += int64(n); err != nil {
			if (err != io.EOF && err != io.ErrUnexpectedEOF) || read != size {
				p.t.Fatalf("%s: %d bytes, want %d, %v", what, read, size, err)
			}
			break
		}
	}
	if rest, err := io.ReadAll(body); err != nil || encoded != strings.HasPrefix(string(rest), `"`) {
		p.t.Errorf("%s: the answer ends in %q, %v", what, rest, err)
	}
}
