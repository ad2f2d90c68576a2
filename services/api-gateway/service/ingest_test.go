package gateway

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sync/semaphore"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
)

func gz(t *testing.T, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

const asGzip = "Content-Encoding"

func TestLogs(t *testing.T) {
	r := newRig(t, nil)
	const a, b = `{"Event":{"n":1}}`, ` {"Event": {"n": 2.50}, "é":"\u00e9"} `
	long := `{"x":"` + strings.Repeat("y", message.MaxLine) + `"}`
	longest := `{"x":"` + strings.Repeat("y", message.MaxLine-8) + `"}`
	deep := strings.Repeat(`{"a":`, 10001) + "1" + strings.Repeat("}", 10001)
	type letter struct{ reason, line string }
	for _, tc := range []struct {
		name    string
		body    []byte
		header  []string
		code    int
		answer  string
		events  []string
		letters []letter
	}{
		{name: "empty", code: 200},
		{name: "plain", body: []byte(a + "\n" + b + "\n"), code: 200, events: []string{a, b}},
		{name: "no newline at the end", body: []byte(a + "\n" + b), code: 200, events: []string{a, b}},
		{name: "crlf and blank lines", body: []byte("\r\n\n" + a + "\r\n \t\n" + b + "\r\n\n"), code: 200, events: []string{a, b}},
		{name: "gzip", body: gz(t, a+"\n"+b), header: []string{asGzip, "gzip"}, code: 200, events: []string{a, b}},
		{name: "gzip of several members", body: slices.Concat(gz(t, a+"\n"), gz(t, b+"\n")), header: []string{asGzip, "GZIP"}, code: 200, events: []string{a, b}},
		{name: "gzip of nothing", body: gz(t, ""), header: []string{asGzip, "gzip"}, code: 200},
		{name: "not gzip", body: []byte("not gzip"), header: []string{asGzip, "gzip"}, code: 500, answer: "Cannot create gzip reader\n"},
		{name: "two bytes", body: []byte("xx"), header: []string{asGzip, "gzip"}, code: 500, answer: "Cannot create gzip reader\n"},
		{name: "empty gzip", header: []string{asGzip, "gzip"}, code: 500, answer: "Cannot create gzip reader\n"},
		{name: "gzip header breaks off", body: gz(t, a)[:7], header: []string{asGzip, "gzip"}, code: 400},
		{name: "gzip breaks off", body: gz(t, a+"\n"+b)[:40], header: []string{asGzip, "gzip"}, code: 400},
		{name: "gzip without its last byte", body: func() []byte { z := gz(t, a); return z[:len(z)-1] }(), header: []string{asGzip, "gzip"}, code: 400},
		{name: "gzip with a wrong checksum", body: func() []byte { z := gz(t, a); z[len(z)-6] ^= 1; return z }(), header: []string{asGzip, "gzip"}, code: 400},
		{name: "unknown coding", body: []byte(a), header: []string{asGzip, "br"}, code: 415},
		{name: "bad lines among good ones", body: []byte("not json\n" + a + "\n[]\n1\n{\"Event\":\n" + b + "\n" + deep + "\n"), code: 200, events: []string{a, b},
			letters: []letter{{message.ReasonNotJSON, "not json"}, {message.ReasonNotObject, "[]"}, {message.ReasonNotObject, "1"},
				{message.ReasonNotJSON, `{"Event":`}, {message.ReasonTooDeep, deep}}},
		{name: "longest line", body: []byte(a + "\n" + longest + "\n" + b), code: 200, events: []string{a, longest, b}},
		{name: "line that is too long", body: []byte(a + "\n" + long + "\r\n" + b), code: 200, events: []string{a, b},
			letters: []letter{{message.ReasonTooLong, long}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := r.endpoint()
			got := r.agent(e, http.MethodPost, "/logs", bytes.NewReader(tc.body), tc.header...)
			if got.code != tc.code || tc.answer != "" && got.body != tc.answer || tc.code == 200 && got.body != "" {
				t.Fatalf("%d %q, want %d %q", got.code, got.body, tc.code, tc.answer)
			}
			lines, batches := r.events(e.UUID)
			if tc.code != 200 {
				return // part of it may be stored
			}
			if !slices.Equal(lines, tc.events) {
				t.Errorf("events %.200q, want %.200q", lines, tc.events)
			}
			for _, b := range batches {
				if b.Hostname != "WS-03e3" || b.IP != "127.0.0.1" || len(b.Trace(0)) != 55 || time.Since(b.Received) > time.Minute || b.Trace(0) != batches[0].Trace(0) {
					t.Errorf("batch %+v", b)
				}
			}
			var letters []letter
			for _, m := range r.messages(stream.DeadLetters) {
				if subject.Endpoint(m.Subject) != e.UUID {
					continue
				}
				l := letter{m.Header.Get(message.HeaderReason), string(m.Data)}
				letters = append(letters, l)
				var whole string
				for _, want := range tc.letters {
					if strings.HasPrefix(want.line, l.line) && want.reason == l.reason {
						whole = want.line
					}
				}
				sum := sha256.Sum256([]byte(whole))
				if m.Header.Get(message.HeaderSize) != strconv.Itoa(len(whole)) || m.Header.Get(message.HeaderHash) != hex.EncodeToString(sum[:]) {
					t.Errorf("dead letter %v does not describe the line of %d bytes", m.Header, len(whole))
				}
			}
			for i := range tc.letters {
				if l := &tc.letters[i]; l.reason == message.ReasonTooLong {
					l.line = l.line[:message.DeadLetterHead]
				}
			}
			if !slices.Equal(letters, tc.letters) {
				t.Errorf("dead letters %.300q, want %.300q", letters, tc.letters)
			}
		})
	}
}

func TestLogsAreCutIntoBatches(t *testing.T) {
	r := newRig(t, nil)
	e := r.endpoint()
	var want []string
	for i := range 1200 {
		want = append(want, fmt.Sprintf(`{"n":%d}`, i))
	}
	for i := range 20 {
		want = append(want, fmt.Sprintf(`{"n":%d,"x":"%s"}`, i, strings.Repeat("z", 100<<10)))
	}
	want = append(want, `{"big":"`+strings.Repeat("b", 2<<20)+`"}`, `{"last":true}`)
	if a := r.agent(e, http.MethodPost, "/logs", strings.NewReader(strings.Join(want, "\n"))); a.code != 200 {
		t.Fatalf("%d %s", a.code, a.body)
	}
	lines, batches := r.events(e.UUID)
	if !slices.Equal(lines, want) {
		t.Fatalf("%d lines, want %d", len(lines), len(want))
	}
	for i, b := range batches {
		size := 0
		for _, l := range b.Lines {
			size += len(l) + 1
		}
		if len(b.Lines) > message.MaxBatchEvents || size > message.MaxBatchBytes && len(b.Lines) > 1 {
			t.Errorf("batch %d has %d lines and %d bytes", i, len(b.Lines), size)
		}
	}
	if len(batches) > 9 {
		t.Errorf("%d batches, want full ones", len(batches))
	}
	if got := testutil.ToFloat64(r.svc.metrics.events); got != float64(len(want)) {
		t.Errorf("%v events counted, want %d", got, len(want))
	}
}

// A message that is not small tells the time of each event, as Scan finds it.
func TestLogsComeWithTimes(t *testing.T) {
	r := newRig(t, nil)
	e := r.endpoint()
	pad := strings.Repeat("z", 9<<10)
	var body strings.Builder
	for i, form := range []string{
		`{"Event":{"System":{"TimeCreated":{"SystemTime":"2026-01-02T03:04:05.6789012Z"}}},"x":%q}`,
		`{"x":%q}`,
		`{"info":{"utc_time":"2026-01-02T03:04:05.678901234Z"},"x":%q}`,
		`{"Event":{"System":{"TimeCreated":{"SystemTime":"2026-01-02T03:04:05+02:00"}}},"x":%q}`,
		`{"Event":{"System":{"TimeCreated":{"SystemTime":"yesterday"}}},"x":%q}`,
	} {
		fmt.Fprintf(&body, form+"\n", fmt.Sprint(i, pad))
	}
	for _, text := range []string{body.String(), `{"info":{"utc_time":"2026-01-02T03:04:05Z"}}`} {
		if a := r.agent(e, http.MethodPost, "/logs", strings.NewReader(text)); a.code != 200 {
			t.Fatalf("%d %s", a.code, a.body)
		}
	}
	_, batches := r.events(e.UUID)
	if len(batches) != 2 || len(batches[0].Times) != 5 || len(batches[1].Times) != 0 {
		t.Fatalf("batches %+v", batches)
	}
	for i, line := range batches[0].Lines {
		info, err := event.Scan(line)
		if err != nil || !info.Time.Equal(batches[0].Times[i]) {
			t.Errorf("event %d has time %s, want %s, %v", i, batches[0].Times[i], info.Time, err)
		}
	}
}

func TestLogsRefused(t *testing.T) {
	line := `{"x":"` + strings.Repeat("y", 3000) + `"}` + "\n"
	retry := func(t *testing.T, a answer) {
		t.Helper()
		seconds, err := strconv.Atoi(a.header.Get("Retry-After"))
		if a.code != 503 || err != nil || seconds < 5 || seconds > 15 {
			t.Errorf("%d %q, Retry-After %q", a.code, a.body, a.header.Get("Retry-After"))
		}
	}
	refused := func(t *testing.T, r *rig, reason string) {
		t.Helper()
		if n := testutil.ToFloat64(r.svc.metrics.refused.WithLabelValues(reason)); n != 1 {
			t.Errorf("%v refusals because of %s, want 1", n, reason)
		}
	}
	t.Run("stream of events is full", func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.Events = stream.Limits{MaxBytes: 4 << 10} })
		e := r.endpoint()
		var a answer
		for i := 0; i < 100; i++ {
			noise := fmt.Sprintf(`{"x":"%x"}`, sha256.Sum256([]byte{byte(i)}))
			if a = r.agent(e, http.MethodPost, "/logs", strings.NewReader(noise)); a.code != 200 {
				break
			}
		}
		retry(t, a)
		refused(t, r, refusedPublish)
	})
	t.Run("stream of dead letters is full", func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.DeadLetters = stream.Limits{MaxBytes: 1 << 10} })
		e := r.endpoint()
		retry(t, r.agent(e, http.MethodPost, "/logs", strings.NewReader(`{"a":1}`+"\n"+strings.Repeat("x", 2000))))
		refused(t, r, refusedPublish)
	})
	t.Run("manager is full", func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.Full = func() error { return errors.New("the disk is nearly full") } })
		e := r.endpoint()
		retry(t, r.agent(e, http.MethodPost, "/logs", strings.NewReader(line)))
		refused(t, r, refusedFull)
		if a := r.agent(e, http.MethodGet, "/key", nil); a.code != 200 {
			t.Errorf("a poll is answered with %d", a.code)
		}
		if lines, _ := r.events(e.UUID); len(lines) > 0 {
			t.Errorf("%d lines are stored", len(lines))
		}
	})
	t.Run("no stream", func(t *testing.T) {
		r := newRig(t, nil)
		e := r.endpoint()
		if err := r.bus.JS.DeleteStream(t.Context(), stream.Events); err != nil {
			t.Fatal(err)
		}
		retry(t, r.agent(e, http.MethodPost, "/logs", strings.NewReader(line)))
		refused(t, r, refusedPublish)
	})
	t.Run("no nats", func(t *testing.T) {
		r := newRig(t, nil)
		e := r.endpoint()
		if a := r.agent(e, http.MethodGet, "/key", nil); a.code != 200 {
			t.Fatalf("%d %s", a.code, a.body)
		}
		r.nats.NATS.Shutdown()
		r.nats.NATS.WaitForShutdown()
		retry(t, r.agent(e, http.MethodPost, "/logs", strings.NewReader(line)))
		if r.svc.Ready() == nil {
			t.Error("the gateway says it is ready")
		}
	})
	t.Run("more than it may inflate to", func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.MaxInflated = 1 << 20 })
		e := r.endpoint()
		fits := strings.Repeat(line, 100)
		if a := r.agent(e, http.MethodPost, "/logs", bytes.NewReader(gz(t, fits)), asGzip, "gzip"); a.code != 200 {
			t.Errorf("%d %s for a body that fits", a.code, a.body)
		}
		if a := r.agent(e, http.MethodPost, "/logs", bytes.NewReader(gz(t, strings.Repeat(line, 400))), asGzip, "gzip"); a.code != 413 {
			t.Errorf("%d %s, want 413", a.code, a.body)
		}
		refused(t, r, refusedTooLarge)
	})
	t.Run("bomb", func(t *testing.T) {
		r := newRig(t, nil)
		e := r.endpoint()
		bomb := gz(t, strings.Repeat(strings.Repeat(" ", 1<<20)+"\n", ratioAfter>>20+1))
		if a := r.agent(e, http.MethodPost, "/logs", bytes.NewReader(bomb), asGzip, "gzip"); a.code != 413 {
			t.Errorf("%d %s, want 413", a.code, a.body)
		}
		refused(t, r, refusedTooLarge)
	})
	t.Run("plain body breaks off", func(t *testing.T) {
		r := newRig(t, nil)
		e := r.endpoint()
		conn := r.dial(r.svc.AgentAddr())
		fmt.Fprintf(conn, "POST /logs HTTP/1.1\r\nHost: x\r\nUUID: %s\r\nApi-Key: %s\r\nHostname: H\r\nContent-Length: 1000\r\n\r\n{\"a\":1}\n{\"b\":", e.UUID, e.Key)
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		reply, err := io.ReadAll(conn)
		if err != nil || !bytes.HasPrefix(reply, []byte("HTTP/1.1 400 ")) {
			t.Errorf("%q, %v, want 400", reply, err)
		}
		refused(t, r, refusedMalformed)
		if lines, _ := r.events(e.UUID); slices.Contains(lines, `{"b":`) || len(r.messages(stream.DeadLetters)) > 0 {
			t.Error("the line that broke off is stored")
		}
	})
}

func TestLogsWithLittleMemory(t *testing.T) {
	r := newRig(t, func(c *Config) { c.IngestMemory, c.Unacked, c.IngestWorkers = 1, 1, 1 })
	e := r.endpoint()
	if a := r.agent(e, http.MethodGet, "/key", nil); a.code != 200 {
		t.Fatalf("%d %s", a.code, a.body)
	}
	// A request that stands still holds its memory, and no CPU.
	stuck, feed := io.Pipe()
	var wait sync.WaitGroup
	wait.Go(func() {
		if a := r.agent(e, http.MethodPost, "/logs", stuck); a.code != 200 {
			t.Errorf("%d %s for the slow request", a.code, a.body)
		}
	})
	if _, err := io.WriteString(feed, `{"slow":1}`+"\n"); err != nil {
		t.Fatal(err)
	}
	want := []string{`{"slow":1}`}
	for c := range 4 {
		var lines []string
		for i := range 300 {
			lines = append(lines, fmt.Sprintf(`{"c":%d,"n":%d,"x":"%s"}`, c, i, strings.Repeat("x", 5000)))
		}
		want = append(want, lines...)
		wait.Go(func() {
			if a := r.agent(e, http.MethodPost, "/logs", strings.NewReader(strings.Join(lines, "\n"))); a.code != 200 {
				t.Errorf("%d %s", a.code, a.body)
			}
		})
	}
	eventually(t, "the others are stored", func() bool { return testutil.ToFloat64(r.svc.metrics.events) == 1200 })
	if err := feed.Close(); err != nil {
		t.Fatal(err)
	}
	wait.Wait()
	lines, _ := r.events(e.UUID)
	slices.Sort(lines)
	slices.Sort(want)
	if !slices.Equal(lines, want) {
		t.Errorf("%d lines are stored, want %d", len(lines), len(want))
	}
	if !r.svc.ingest.memory.TryAcquire(r.svc.cfg.IngestMemory) {
		t.Error("memory was not given back")
	}
	if !r.svc.pub.unacked.TryAcquire(r.svc.cfg.Unacked) {
		t.Error("the budget of unacknowledged messages was not given back")
	}
}

// A buffer that grew in the hands of one request is paid for by the next one, or
// not used, and one that is very large is not kept.
func TestGrownBuffersArePaidFor(t *testing.T) {
	in := &ingester{buffers: sync.Pool{New: newBuffers}, memory: semaphore.NewWeighted(2 * keptBatch)}
	kept := 0
	for range 100 { // for the pool may forget what it is given
		for _, size := range []int{keptBatch, keptBatch + 1} {
			for _, free := range []int64{2 * keptBatch, keptBatch / 2} {
				grown := in.borrow(&allowance{from: semaphore.NewWeighted(2 * keptBatch)})
				grown.batch = make([]byte, 10, size)
				in.giveBack(grown)
				others := &allowance{from: in.memory}
				if !others.try(2*keptBatch - free) {
					t.Fatal("memory was not given back")
				}
				mem := &allowance{from: in.memory}
				buf := in.borrow(mem)
				if cap(buf.batch) == keptBatch {
					kept++
				}
				if n := cap(buf.batch); len(buf.batch) != 0 || n < firstBatch || n > keptBatch || int64(n-firstBatch) > mem.n {
					t.Fatalf("a buffer of %d bytes, %d of them used, is paid for with %d", n, len(buf.batch), mem.n)
				}
				mem.release()
				others.release()
			}
		}
	}
	if kept == 0 {
		t.Error("no buffer was kept")
	}
}

// events300 generates a large body of lines that compress like real ones.
type events300 struct {
	left int
	rest []byte
	n    int
	r    *rand.Rand
}

func (g *events300) Read(p []byte) (int, error) {
	if len(g.rest) == 0 {
		if g.left <= 0 {
			return 0, io.EOF
		}
		g.rest = fmt.Appendf(g.rest[:0], `{"Event":{"EventData":{"Image":"C:\\Windows\\System32\\svchost.exe","N":"%d","Guid":"%x%x","Pad":"%s"},"System":{"Channel":"Security"}}}`+"\n",
			g.n, g.r.Uint64(), g.r.Uint64(), strings.Repeat("abcdefgh", 140))
		g.n++
		g.left -= len(g.rest)
	}
	n := copy(p, g.rest)
	g.rest = g.rest[n:]
	return n, nil
}

func TestLogsOf300MB(t *testing.T) {
	const size, allowed = 300 << 20, 200 << 20
	r := newRig(t, nil)
	e := r.endpoint()
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse
	}
	runtime.GC()
	before := heap()
	ctx, stop := context.WithCancel(t.Context())
	var peak uint64
	var watch sync.WaitGroup
	watch.Go(func() {
		for ctx.Err() == nil {
			peak = max(peak, heap())
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	for name, header := range map[string][]string{"plain": nil, "gzip": {asGzip, "gzip"}} {
		body := &events300{left: size, r: rand.New(rand.NewPCG(1, uint64(len(name))))}
		var src io.Reader = body
		if header != nil {
			pr, pw := io.Pipe()
			go func() {
				zw, _ := gzip.NewWriterLevel(pw, gzip.BestSpeed)
				_, err := io.Copy(zw, body)
				pw.CloseWithError(errors.Join(err, zw.Close()))
			}()
			src = pr
		}
		counted := testutil.ToFloat64(r.svc.metrics.events)
		if a := r.agent(e, http.MethodPost, "/logs", src, header...); a.code != 200 {
			t.Fatalf("%s: %d %s", name, a.code, a.body)
		}
		if got := testutil.ToFloat64(r.svc.metrics.events) - counted; got != float64(body.n) {
			t.Errorf("%s: %v events are stored, want %d", name, got, body.n)
		}
	}
	stop()
	watch.Wait()
	t.Logf("heap before %d MiB, at most %d MiB", before>>20, peak>>20)
	if peak > before+allowed {
		t.Errorf("the heap grew by %d MiB, at most %d are allowed", (peak-before)>>20, allowed>>20)
	}
}
