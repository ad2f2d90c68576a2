package message_test

import (
	"bytes"
	"testing"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
)

// page is "two one two\n" of two bodies.
func page() []byte {
	b := message.AppendPage(nil, 12, 2)
	b = message.AppendPageBody(b, message.Compress(nil, []byte("xx one xx")), []message.PageRun{{From: 3, Size: 4, At: 4}})
	return message.AppendPageBody(b, message.Compress(nil, []byte("two two\n")), []message.PageRun{{From: 0, Size: 4, At: 0}, {From: 4, Size: 4, At: 8}})
}

// The runs of all bodies stand where they belong, in the memory that is given.
func TestPage(t *testing.T) {
	buf := bytes.Repeat([]byte("z"), 100)
	got, err := message.OpenPage(buf, page())
	if err != nil || string(got) != "two one two\n" || &got[0] != &buf[0] {
		t.Errorf("%q, %v", got, err)
	}
	got, err = message.OpenPage(nil, message.AppendPage(nil, 0, 0))
	if err != nil || len(got) != 0 {
		t.Errorf("an empty page: %q, %v", got, err)
	}
}

// A page that is cut off, has more than it says or reaches beyond its bodies or
// itself is refused.
func TestPageRefuses(t *testing.T) {
	whole := page()
	for end := range whole {
		if got, err := message.OpenPage(nil, whole[:end]); err == nil {
			t.Errorf("the first %d bytes of %d were read: %q", end, len(whole), got)
		}
	}
	if _, err := message.OpenPage(nil, append(page(), 0)); err == nil {
		t.Error("a byte too many was read")
	}
	body := message.Compress(nil, []byte("0123456789"))
	for name, run := range map[string]message.PageRun{
		"beyond the body": {From: 8, Size: 4}, "beyond the page": {Size: 4, At: 1}, "a hole": {Size: 3},
		"huge": {From: 1 << 62, Size: 1 << 62}, "negative": {From: -1, Size: 4},
	} {
		b := message.AppendPageBody(message.AppendPage(nil, 4, 1), body, []message.PageRun{run})
		if got, err := message.OpenPage(nil, b); err == nil {
			t.Errorf("%s: %q", name, got)
		}
	}
	if _, err := message.OpenPage(nil, message.AppendPage(nil, 1<<40, 0)); err == nil {
		t.Error("a page of a terabyte was read")
	}
}
