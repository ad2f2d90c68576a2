//go:build fsync

package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// traced makes a program that runs the manager under strace, which notes every
// call that writes or syncs, with the path of its file, or that maps one into memory.
func traced(t *testing.T) (program, log string) {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Fatal("this test needs strace: apt-get install strace")
	}
	dir := t.TempDir()
	program, log = filepath.Join(dir, "traced"), filepath.Join(dir, "log")
	script := fmt.Sprintf("#!/bin/sh\nexec %s -D -f --seccomp-bpf -y -s 32 -e trace=write,pwrite64,writev,fsync,fdatasync,mmap,mremap,munmap,msync -e signal=none -o %s %s \"$@\"\n", strace, log, binary)
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return program, log
}

// watched does something and judges what strace wrote of it, again and again
// until its answer is there.
func (p *proc) watched(log, what string, do func(), judge func(list []*call, from int) (*judgment, error)) *judgment {
	p.t.Helper()
	from := p.written(log)
	do()
	var found *judgment
	eventually(p.t, what, func() (err error) {
		found, err = judge(readCalls(p.t, log), from)
		return err
	})
	return found
}

// written returns how many lines strace has written, of all at least that was
// answered by now: the line of an answer may come after the answer. So something
// more is asked for, whose answer is another.
func (p *proc) written(log string) int {
	p.t.Helper()
	lines, answers := p.count(log)
	if resp, _ := p.raw("/none"); resp.StatusCode != http.StatusNotFound {
		p.t.Fatalf("GET /none: %s", resp.Status)
	}
	eventually(p.t, "strace notes an answer", func() (err error) {
		var n int
		if lines, n = p.count(log); n == answers {
			err = errNoAnswer
		}
		return err
	})
	return lines
}

// count returns how many lines a log of strace has, and how many answers that
// something is not there.
func (p *proc) count(log string) (lines, answers int) {
	p.t.Helper()
	text, err := os.ReadFile(log)
	if err != nil {
		p.t.Fatal(err)
	}
	return bytes.Count(text, []byte("\n")), bytes.Count(text, []byte(`, "HTTP/1.1 404`))
}

func readCalls(t *testing.T, log string) []*call {
	t.Helper()
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	return calls(string(text))
}

// streamSyncs counts the syncs of a stream's files.
func streamSyncs(list []*call, stream string) (n int) {
	for _, c := range list {
		if strings.Contains(c.file(), "/streams/"+stream+"/msgs/") && strings.HasSuffix(c.file(), ".blk") && strings.HasSuffix(c.name, "sync") {
			n++
		}
	}
	return n
}

// TestSyncedBeforeAnswer watches the system calls of a manager: whatever it
// acknowledges has been written to its stream's file, and the file synced,
// before the answer leaves.
func TestSyncedBeforeAnswer(t *testing.T) {
	p, log := startTraced(t)
	e := p.enrol()
	var c *command
	for _, step := range []struct {
		name, stream string
		do           func()
	}{
		{"POST /logs", "EVENTS", func() { p.mustPost(e, plainEvent(1, time.Now())) }},
		{"POST /logs, no event", "DEADLETTER", func() { p.mustPost(e, []byte("no event")) }},
		{"POST /rules", "KV_rules", func() { p.data(http.MethodPost, "/rules", testRule) }},
		{"PUT /endpoints", "KV_endpoints", func() { p.enrol() }},
		{"POST command", "KV_commands", func() { p.command(e, `{"command-line":"whoami"}`) }},
		{"GET /commands", "KV_commands", func() { c = p.fetchCommand(e) }},
		{"result", "KV_commands", func() {
			p.answer(e, strings.NewReader(`{"uuid":"`+c.UUID+`","name":"whoami","stdout":"cm9vdA==","sent":true,"completed":true}`))
		}},
		{"upload", "OBJ_artifacts", func() { p.mustSend(e, artifact{Filename: "f.bin", Content: []byte("dump")}) }},
	} {
		found := p.watched(log, step.name, step.do, func(list []*call, from int) (*judgment, error) { return streamSynced(list, step.stream, from) })
		if !found.synced {
			t.Errorf("%s: stream %s: %v", step.name, step.stream, found)
		}
	}
}

// TestSyncedTogether has many endpoints send an event each at the same moment.
// Whoever's event is written to INTAKE with others is not answered before that is
// synced: at each sync no more have been answered than events stand elsewhere.
func TestSyncedTogether(t *testing.T) {
	p, log := startTraced(t)
	endpoints := make([]endpoint, 100)
	for i := range endpoints {
		endpoints[i] = p.enrol()
	}
	at := time.Now().Truncate(time.Second)
	line := plainEvent(1000, at)
	p.watched(log, "POST /logs, many at once", func() {
		var all sync.WaitGroup
		for i, e := range endpoints {
			all.Go(func() {
				if code, err := p.post(e, false, plainEvent(1000+i, at)); err != nil || code != http.StatusOK {
					t.Errorf("POST /logs: %d %v", code, err)
				}
			})
		}
		all.Wait()
	}, func(list []*call, from int) (*judgment, error) {
		// What stands in INTAKE of an event: its line, the endpoint, and little more.
		const head, more = 100, 80
		left, answers := len(endpoints), 0
		var writes []*call
		for _, c := range list {
			if c.began < from {
				continue
			}
			if c.answers() {
				answers++
			}
			if size, err := strconv.Atoi(c.result); err == nil && c.writesTo("INTAKE") && size > head+len(line) {
				writes = append(writes, c)
			}
		}
		if answers < len(endpoints) {
			return nil, errNoAnswer
		}
		if len(writes) == 0 || len(writes) > len(endpoints)/5 {
			t.Errorf("%d writes to INTAKE for %d events", len(writes), answers)
		}
		for i := len(writes) - 1; i >= 0; i-- {
			w := writes[i]
			size, _ := strconv.Atoi(w.result)
			left -= (size - head) / (len(line) + more)
			early := &judgment{seen: []*call{w}}
			for _, c := range list {
				if c.began > w.ended && strings.HasSuffix(c.name, "sync") && c.file() == w.file() {
					early.synced = c.result == "0"
					early.seen = append(early.seen, c)
					break
				}
				if c.began >= from && c.answers() {
					early.seen = append(early.seen, c)
				}
			}
			if answered := len(early.seen) - 2; !early.synced || answered > left {
				t.Errorf("%d of %d are answered, %d events stand elsewhere: %v", answered, answers, left, early)
			}
		}
		return &judgment{}, nil
	})
}

// TestStoreSyncedBeforeAnswer holds what --sync always promises of stores: who
// asks for a change is answered when the view of it, and its position, are on
// stable storage as well, so that a view never goes back behind what somebody
// was told. With an interval they are not synced.
func TestStoreSyncedBeforeAnswer(t *testing.T) {
	for _, tc := range []struct {
		sync   string
		synced bool
	}{{"always", true}, {"1h", false}} {
		t.Run(tc.sync, func(t *testing.T) {
			p, log := startTraced(t, "--sync", tc.sync)
			e := p.enrol()
			for _, step := range []struct {
				name, stream, service string
				do                    func()
			}{
				{"POST /rules", "KV_rules", "rule-engine", func() { p.data(http.MethodPost, "/rules", testRule) }},
				{"PUT /endpoints", "KV_endpoints", "endpoint-registry", func() { p.enrol() }},
				{"POST command", "KV_commands", "command-dispatch", func() { p.command(e, `{"command-line":"whoami"}`) }},
			} {
				found := p.watched(log, step.name, step.do, func(list []*call, from int) (*judgment, error) {
					return storeSynced(list, step.stream, step.service, from)
				})
				if found.synced != tc.synced {
					t.Errorf("%s: log of the store of %s: %v", step.name, step.service, found)
				}
			}
		})
	}
}

// TestSyncIntervalIsHonoured shows that --sync with an interval reaches the
// streams, and that the look at system calls can see the difference.
func TestSyncIntervalIsHonoured(t *testing.T) {
	p, log := startTraced(t, "--sync", "1h")
	e := p.enrol()
	for range 5 {
		p.mustPost(e, plainEvent(1, time.Now()))
	}
	if n := streamSyncs(readCalls(t, log), "EVENTS"); n > 0 {
		t.Errorf("%d syncs of EVENTS within the interval", n)
	}
}

// startTraced starts a manager under strace.
func startTraced(t *testing.T, args ...string) (*proc, string) {
	plain := binary
	t.Cleanup(func() { binary = plain })
	program, log := traced(t)
	binary = program
	return start(t, t.TempDir(), append(args, "--tls", "off")...), log
}
