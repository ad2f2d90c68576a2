package e2e

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// call is one system call that strace has seen.
type call struct {
	// thread is the id of the thread that called, args what strace shows of
	// the arguments, result what was returned, "" where nothing was.
	thread, name, args, result string
	// began and ended are numbers of lines of the log, ended is never where
	// the call has not returned.
	began, ended int
}

// never is behind the last line of any log.
const never = 1 << 60

func (c *call) String() string {
	lines := fmt.Sprintf("%d to %d", c.began+1, c.ended+1)
	if c.ended == never {
		lines = fmt.Sprintf("%d on", c.began+1)
	}
	return fmt.Sprintf("line %s: %s %s(%s) = %s", lines, c.thread, c.name, c.args, c.result)
}

var fileOfCall = regexp.MustCompile(`\d<([^>]*)>`)

// file is the path that belongs to the file descriptor of the call, "" where it
// has none.
func (c *call) file() string {
	if m := fileOfCall.FindStringSubmatch(c.args); m != nil {
		return m[1]
	}
	return ""
}

// address is the first argument of a call that is about mapped memory.
func (c *call) address() string {
	address, _, _ := strings.Cut(c.args, ",")
	return address
}

func (c *call) writes() bool {
	return c.name == "write" || c.name == "pwrite64" || c.name == "writev"
}

// writesTo tells whether the call writes a file of a stream's messages.
func (c *call) writesTo(stream string) bool {
	return c.writes() && strings.Contains(c.file(), "/streams/"+stream+"/msgs/")
}

// answers tells whether the call writes an answer of the manager.
func (c *call) answers() bool { return c.writes() && strings.Contains(c.args, `, "HTTP/1.1 200`) }

var (
	beginOfCall = regexp.MustCompile(`^(\d+) +(\w+)\((.*)$`)
	restOfCall  = regexp.MustCompile(`^(\d+) +<\.\.\. (\w+) resumed>(.*)$`)
	endOfCall   = regexp.MustCompile(`^(.*)\) += (.*)$`)
)

// calls reads what strace wrote, in the order in which the calls began. A call
// that strace has split, since another thread did something meanwhile, is one
// again. A last line that is still being written is none.
func calls(log string) (list []*call) {
	open := map[string]*call{} // by thread
	lines := strings.Split(log, "\n")
	for n, line := range lines[:len(lines)-1] {
		var c *call
		if m := beginOfCall.FindStringSubmatch(line); m != nil {
			c = &call{thread: m[1], name: m[2], args: m[3], began: n, ended: never}
			list, open[c.thread] = append(list, c), c
			if before, ok := strings.CutSuffix(c.args, " <unfinished ...>"); ok {
				c.args = before
				continue
			}
		} else if m := restOfCall.FindStringSubmatch(line); m != nil {
			if c = open[m[1]]; c == nil || c.name != m[2] {
				continue
			}
			c.args += m[3]
		} else {
			continue
		}
		delete(open, c.thread)
		if m := endOfCall.FindStringSubmatch(c.args); m != nil {
			c.args, c.result, c.ended = m[1], m[2], n
		}
	}
	return list
}

// mapped returns the path of the file that was mapped at an address when line
// began, "" where none was.
func mapped(list []*call, address string, line int) (file string) {
	since := -1
	for _, c := range list {
		// What is given back is so from when the call begins: another thread may
		// get the address before strace sees it end.
		if (c.name == "munmap" || c.name == "mremap") && c.address() == address && c.began < line && c.began > since {
			file, since = "", c.began
		}
		switch {
		case c.result != address || c.ended >= line || c.ended < since:
		case c.name == "mmap":
			file, since = c.file(), c.ended
		case c.name == "mremap":
			file, since = mapped(list, c.address(), c.began), c.ended
		}
	}
	return file
}

var errNoAnswer = errors.New("no answer is in the log")

// judgment tells whether what belongs to an answer was synced before it, and the
// calls it was judged by.
type judgment struct {
	synced bool
	seen   []*call
}

func (v *judgment) String() string {
	text := fmt.Sprintf("synced before the answer: %t, by these calls:", v.synced)
	for _, c := range v.seen {
		text += "\n\t" + c.String()
	}
	return text
}

// between looks, behind line from, for the first write to a stream's file and
// the first answer of the manager after it. Answers before the write are those
// of earlier requests, which strace may write down late. synced is asked of each
// call in between that had returned when the answer began, whether it is the
// sync in question.
func between(list []*call, stream string, from int, synced func(written, c *call) bool) (*judgment, error) {
	var written, answer *call
	for _, c := range list {
		switch {
		case c.began < from:
		case written == nil && c.writesTo(stream):
			written = c
		case written != nil && answer == nil && c.answers():
			answer = c
		}
	}
	if answer == nil {
		return nil, errNoAnswer
	}
	v := &judgment{}
	for _, c := range list {
		if c.began < written.began || c.began > answer.began {
			continue
		}
		v.seen = append(v.seen, c)
		if c.began > written.ended && c.ended < answer.began && c.result == "0" && synced(written, c) {
			v.synced = true
		}
	}
	return v, nil
}

// streamSynced tells whether a stream's file was synced between a write to it
// and the answer.
func streamSynced(list []*call, stream string, from int) (*judgment, error) {
	return between(list, stream, from, func(written, c *call) bool {
		return (c.name == "fsync" || c.name == "fdatasync") && c.file() == written.file()
	})
}

// storeSynced tells whether the log of a service's store, which Badger writes
// through a memory map, was synced between a write to a stream's file and the
// answer.
func storeSynced(list []*call, stream, service string, from int) (*judgment, error) {
	isLog := func(file string) bool {
		return strings.Contains(file, "/"+service+"/") && strings.HasSuffix(file, ".mem")
	}
	v, err := between(list, stream, from, func(_, c *call) bool {
		return c.name == "msync" && strings.HasSuffix(c.args, ", MS_SYNC") && isLog(mapped(list, c.address(), c.began))
	})
	if err != nil {
		return nil, err
	}
	var maps []*call
	for _, c := range list {
		if c.name == "mmap" && isLog(c.file()) {
			maps = append(maps, c)
		}
	}
	v.seen = append(maps, v.seen...)
	return v, nil
}
