package e2e

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestTimeRanges queries events that came out of order, over day borders,
// early and late.
func TestTimeRanges(t *testing.T) {
	p := start(t, t.TempDir())
	e := p.enrol()
	base := time.Date(2026, 2, 27, 22, 0, 0, 0, time.UTC)
	const hours, perHour = 30, 12
	type item struct {
		n  int
		at time.Time
	}
	var all []item
	for i := range hours * perHour {
		all = append(all, item{i, base.Add(time.Duration(i) * time.Hour / perHour)})
	}
	shuffled := append([]item(nil), all...)
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	// A wild clock must not hide the others.
	p.mustPost(e, plainEvent(1_000_000, time.Date(2199, 1, 1, 0, 0, 0, 0, time.UTC)), plainEvent(1_000_001, time.Date(1970, 1, 1, 0, 0, 1, 0, time.UTC)))
	for len(shuffled) > 0 {
		n := min(17, len(shuffled))
		var lines [][]byte
		for _, x := range shuffled[:n] {
			lines = append(lines, plainEvent(x.n, x.at))
		}
		p.mustPost(e, lines...)
		shuffled = shuffled[n:]
	}
	eventually(t, "stored", func() error {
		if n := len(p.events(e, "logs"+everything)); n != len(all)+2 {
			return fmt.Errorf("%d events", n)
		}
		return nil
	})
	numbers := func(query string) (list []int) {
		t.Helper()
		for _, raw := range p.events(e, "logs?"+query) {
			var doc struct {
				Event struct{ EventData struct{ N string } }
			}
			if err := json.Unmarshal(raw, &doc); err != nil {
				t.Fatal(err)
			}
			n, err := strconv.Atoi(doc.Event.EventData.N)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, n)
		}
		return list
	}
	stamp := func(at time.Time) string { return url.QueryEscape(at.Format(time.RFC3339Nano)) }
	expect := func(query string, from, to time.Time) {
		t.Helper()
		var want []int
		for _, x := range all {
			if x.at.After(from) && x.at.Before(to) {
				want = append(want, x.n)
			}
		}
		if got := numbers(query); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: got %v, want %v", query, got, want)
		}
	}
	from, to := base.Add(90*time.Minute), base.Add(27*time.Hour)
	expect("start="+stamp(from)+"&stop="+stamp(to), from, to)
	zone := time.FixedZone("", 5*3600+1800)
	expect("start="+stamp(from.In(zone))+"&stop="+stamp(to.In(zone)), from, to)
	pivot := base.Add(2 * time.Hour) // midnight
	expect("pivot="+stamp(pivot)+"&delta=20m", pivot.Add(-20*time.Minute), pivot.Add(20*time.Minute))
	expect("start="+stamp(base.Add(-time.Hour)), base.Add(-time.Hour), time.Now())
	if got := numbers("stop=" + stamp(base)); fmt.Sprint(got) != "[1000001]" {
		t.Errorf("stop alone: %v", got)
	}
	if got := numbers("start=" + stamp(from) + "&stop=" + stamp(to) + "&limit=3&skip=2"); fmt.Sprint(got) != "[21 22 23]" {
		t.Errorf("limit and skip: %v", got)
	}
	if got := numbers(""); len(got) != 0 {
		t.Errorf("the last hour: %v", got)
	}
}

// TestLargeQuery streams 200,000 events of one endpoint and watches the
// memory of the manager.
func TestLargeQuery(t *testing.T) {
	const count, batch = 200_000, 5_000
	p := start(t, t.TempDir())
	e := p.enrol()
	base := time.Now().Add(-24 * time.Hour)
	for n := 0; n < count; n += batch {
		var lines [][]byte
		for i := n; i < n+batch; i++ {
			lines = append(lines, plainEvent(i, base.Add(time.Duration(i)*400*time.Millisecond)))
		}
		p.mustPost(e, lines...)
	}
	eventually(t, "stored", func() error {
		if n := p.metric("nightjar_log_ingest_events_stored_total"); n != count {
			return fmt.Errorf("%v events", n)
		}
		return nil
	})
	before := p.resetPeak()
	req, err := http.NewRequest(http.MethodGet, p.admin+"/endpoints/"+e.UUID+"/logs"+everything, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Api-Key", adminKey)
	resp, err := p.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	dec := json.NewDecoder(resp.Body)
	for range 3 { // { "data" [
		if _, err := dec.Token(); err != nil {
			t.Fatal(err)
		}
	}
	for n := range count {
		var doc struct {
			Event struct{ EventData struct{ N string } }
		}
		if err := dec.Decode(&doc); err != nil {
			t.Fatal(err)
		}
		if doc.Event.EventData.N != strconv.Itoa(n) {
			t.Fatalf("event %s at place %d", doc.Event.EventData.N, n)
		}
	}
	rest, err := io.ReadAll(io.MultiReader(dec.Buffered(), resp.Body))
	if err != nil || string(rest) != `],"message":"OK","error":""}` {
		t.Errorf("the answer ends in %q, %v", rest, err)
	}
	if grown := p.peak() - before; grown > 100<<20 {
		t.Errorf("the manager grew by %d MiB", grown>>20)
	}
}

// TestLargeBody posts 600 MB of events in one request, and the manager grows by
// less: what it needs are buffers of its stores, and their mapped files.
func TestLargeBody(t *testing.T) {
	const size, most = 600_000_000, 400_000_000
	p := start(t, t.TempDir())
	e := p.enrol()
	for _, gzipped := range []bool{false, true} {
		t.Run(fmt.Sprintf("gzip=%v", gzipped), func(t *testing.T) {
			before := p.resetPeak()
			stored := p.metric("nightjar_log_ingest_events_stored_total")
			r, w := io.Pipe()
			sent := 0
			go func() {
				var out io.Writer = w
				var z *gzip.Writer
				if gzipped {
					z, _ = gzip.NewWriterLevel(w, gzip.BestSpeed)
					out = z
				}
				buf := bufio.NewWriterSize(out, 1<<20)
				random := rand.New(rand.NewPCG(3, 4))
				base := time.Now().Add(-12 * time.Hour)
				filler := make([]byte, 64)
				for bytesOut := 0; bytesOut < size; sent++ {
					for i := range filler {
						filler[i] = "0123456789abcdef"[random.IntN(16)]
					}
					line := bytes.Replace(plainEvent(sent, base.Add(time.Duration(sent)*100*time.Millisecond)), []byte(`"N":`), fmt.Appendf(nil, `"G":"%v","Data":"%s","Text":"%s","N":`, gzipped, filler, strings.Repeat("an event has about this much of text; ", 24)), 1)
					_, err := buf.Write(append(line, '\n'))
					if err != nil {
						_ = w.CloseWithError(err)
						return
					}
					bytesOut += len(line) + 1
				}
				err := buf.Flush()
				if z != nil && err == nil {
					err = z.Close()
				}
				_ = w.CloseWithError(err)
			}()
			resp, err := p.client.Do(p.request(e, http.MethodPost, "/logs", r, gzipped))
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Fatalf("status %s", resp.Status)
			}
			eventually(t, "stored", func() error {
				if n := p.metric("nightjar_log_ingest_events_stored_total") - stored; int(n) != sent {
					return fmt.Errorf("%v of %d events", n, sent)
				}
				return nil
			})
			if grown := p.peak() - before; grown > most {
				t.Errorf("the manager grew by %d MB", grown/1_000_000)
			} else {
				t.Logf("the manager grew by %d MB", grown/1_000_000)
			}
		})
	}
}

// resetPeak starts a new measurement of the program's peak memory and returns
// what it uses now, in bytes.
func (p *proc) resetPeak() int64 {
	p.t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.cmd.Process.Pid), []byte("5"), 0); err != nil {
		p.t.Logf("peak memory cannot be reset, measuring since the start: %v", err)
	}
	return p.memory("VmRSS:")
}

// peak returns the greatest amount of memory the program has used, in bytes.
func (p *proc) peak() int64 { return p.memory("VmHWM:") }

func (p *proc) memory(field string) int64 {
	p.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, field); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				p.t.Fatal(err)
			}
			return kb << 10
		}
	}
	p.t.Fatalf("no %s in /proc/%d/status", field, p.cmd.Process.Pid)
	return 0
}
