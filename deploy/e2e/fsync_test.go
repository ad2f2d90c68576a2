//go:build fsync

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// traced makes a program that runs the manager under strace, which notes every
// call that writes or syncs, with the path of its file.
func traced(t *testing.T) (program, log string) {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Fatal("this test needs strace: apt-get install strace")
	}
	dir := t.TempDir()
	program, log = filepath.Join(dir, "traced"), filepath.Join(dir, "log")
	script := fmt.Sprintf("#!/bin/sh\nexec %s -D -f --seccomp-bpf -y -s 32 -e trace=write,pwrite64,writev,fsync,fdatasync,mmap,msync -e signal=none -o %s %s \"$@\"\n", strace, log, binary)
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return program, log
}

// call is one system call, in the order in which strace saw it begin.
type call struct {
	name, file, data string
	// began and ended are numbers of lines.
	began, ended int
}

var (
	wholeCall   = regexp.MustCompile(`^(\d+) +(\w+)\(\d+<([^>]*)>(?:, (".*?"))?.*\) += `)
	beginOfCall = regexp.MustCompile(`^(\d+) +(\w+)\(\d+<([^>]*)>(?:, (".*?"))?.* <unfinished \.\.\.>`)
	endOfCall   = regexp.MustCompile(`^(\d+) +<\.\.\. (\w+) resumed>`)
)

// calls reads what strace wrote.
func calls(t *testing.T, log string) (list []*call) {
	t.Helper()
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	open := map[string]*call{} // by thread
	for n, line := range strings.Split(string(text), "\n") {
		if m := beginOfCall.FindStringSubmatch(line); m != nil {
			c := &call{m[2], m[3], m[4], n, 1 << 60}
			open[m[1]] = c
			list = append(list, c)
		} else if m := endOfCall.FindStringSubmatch(line); m != nil {
			if c := open[m[1]]; c != nil && c.name == m[2] {
				c.ended = n
			}
		} else if m := wholeCall.FindStringSubmatch(line); m != nil {
			list = append(list, &call{m[2], m[3], m[4], n, n})
		}
	}
	return list
}

var errNoAnswer = errors.New("no answer is in the log")

// syncedBeforeAnswer looks, behind line from, for the first write to a stream's
// file and the first answer of the manager after it, and tells whether the file
// was synced between them. Answers before the write are those of earlier
// requests, which strace may write down late.
func syncedBeforeAnswer(list []*call, stream string, from int) error {
	var written *call
	synced := false
	for _, c := range list {
		inStream := strings.Contains(c.file, "/streams/"+stream+"/msgs/")
		switch {
		case c.began < from:
		case inStream && written == nil && (c.name == "write" || c.name == "pwrite64" || c.name == "writev"):
			written = c
		case written == nil:
		case c.file == written.file && (c.name == "fsync" || c.name == "fdatasync") && c.began > written.ended:
			synced = true
			written.ended = c.ended // the answer must come behind it
		case strings.HasPrefix(c.data, `"HTTP/1.1 200`):
			if !synced || c.began < written.ended {
				return fmt.Errorf("stream %s: no sync between the write to its file and the answer", stream)
			}
			return nil
		}
	}
	return errNoAnswer
}

// watched does something and looks, again and again until its answer is there,
// at what strace wrote of it, which is what stands behind line from.
func watched(t *testing.T, log, what string, do func(), look func(from int) error) (found error) {
	t.Helper()
	before, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	do()
	eventually(t, what, func() error {
		if found = look(bytes.Count(before, []byte("\n"))); errors.Is(found, errNoAnswer) {
			return found
		}
		return nil
	})
	return found
}

// syncs counts the syncs of a stream's files.
func syncs(list []*call, stream string) (n int) {
	for _, c := range list {
		if strings.Contains(c.file, "/streams/"+stream+"/msgs/") && strings.HasSuffix(c.file, ".blk") && strings.HasSuffix(c.name, "sync") {
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
		found := watched(t, log, step.name, step.do, func(from int) error { return syncedBeforeAnswer(calls(t, log), step.stream, from) })
		if found != nil {
			t.Errorf("%s: %v", step.name, found)
		}
	}
}

var (
	mapped   = regexp.MustCompile(`mmap\([^)]*<([^>]*)>[^)]*\) += (0x[0-9a-f]+)`)
	msynced  = regexp.MustCompile(`msync\((0x[0-9a-f]+), \d+, MS_SYNC`)
	answered = regexp.MustCompile(`"HTTP/1\.1 200`)
)

// storeSynced looks, behind line from, for the first write to a stream's file and
// the first answer of the manager after it, and tells whether the log of a
// service's store, which Badger writes through a memory map, was synced between
// them. Answers before the write are those of earlier requests, which strace may
// write down late.
func storeSynced(t *testing.T, log, stream, service string, from int) error {
	t.Helper()
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	at, written, synced := map[string]string{}, false, false
	for n, line := range strings.Split(string(text), "\n") {
		if m := mapped.FindStringSubmatch(line); m != nil {
			at[m[2]] = m[1]
		}
		written = written || n >= from && strings.Contains(line, "write") && strings.Contains(line, "/streams/"+stream+"/msgs/")
		if !written {
			continue
		}
		if m := msynced.FindStringSubmatch(line); m != nil && strings.Contains(at[m[1]], "/"+service+"/") && strings.HasSuffix(at[m[1]], ".mem") {
			synced = true
		}
		if answered.MatchString(line) {
			if !synced {
				return fmt.Errorf("store of %s: its log was not synced before the answer", service)
			}
			return nil
		}
	}
	return errNoAnswer
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
				found := watched(t, log, step.name, step.do, func(from int) error { return storeSynced(t, log, step.stream, step.service, from) })
				if (found == nil) != tc.synced {
					t.Errorf("%s: %v", step.name, found)
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
	if n := syncs(calls(t, log), "EVENTS"); n > 0 {
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
