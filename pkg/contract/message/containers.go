package message

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"regexp"
	"time"
	"unicode/utf8"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
)

// Subjects on which the rule-engine changes containers. ContainersPut takes a
// ContainerPutRequest, ContainersDelete a ContainerDeleteRequest; both answer a
// ContainerReply when the change is in force with the replica that answers.
const (
	ContainersPut    = "edr.containers.put"
	ContainersDelete = "edr.containers.delete"
)

// Bounds of a container. Size is that of the text, with a newline for each line.
const (
	MaxContainerLines = 1_000_000
	MaxContainerLine  = 64 << 10
	MaxContainerSize  = 256 << 20
)

// ContainerImported is the key under which a container's object carries, as
// metadata, the digest of the text that was last taken from a folder. A deleted
// container keeps it.
const ContainerImported = "imported"

// containerName is what gene takes as the name of a container within a rule.
var containerName = regexp.MustCompile(`^[\w.-]{1,128}$`)

// IsContainerName tells whether s may be the name of a container: 1 to 128
// letters, digits, underscores, dots or dashes, and neither "." nor "..".
func IsContainerName(s string) bool {
	return s != "." && s != ".." && containerName.MatchString(s)
}

// Container tells of a container, as the admin API shows it.
type Container struct {
	Name  string `json:"name"`
	Lines int    `json:"lines"`
	// Size of the text in bytes, SHA256 of it in hexadecimal.
	Size     uint64    `json:"size"`
	SHA256   string    `json:"sha256"`
	Modified time.Time `json:"modified"`
}

// ContainerContent names text that the gateway has put into the object store
// containers without a name, in the normal form of NewContainerText: what it is
// stored under, its size and messages, and its digest.
type ContainerContent struct {
	ID     string `json:"id"`
	Size   uint64 `json:"size"`
	Chunks uint32 `json:"chunks"`
	Digest string `json:"digest"`
}

// ContainerPutRequest makes text the content of a container, or adds it at the
// container's end. A container that does not exist is made. Once it is answered
// with success the content belongs to the rule-engine.
type ContainerPutRequest struct {
	Name    string           `json:"name"`
	Append  bool             `json:"append,omitempty"`
	Content ContainerContent `json:"content"`
	// Actor is who asks, for the log.
	Actor string `json:"actor,omitempty"`
}

// ContainerDeleteRequest names a container to delete.
type ContainerDeleteRequest struct {
	Name  string `json:"name"`
	Actor string `json:"actor,omitempty"`
}

// ContainerReply answers a change: what the container is now, nothing once it is
// deleted. Revision is the sequence of its description in the object
// store's stream.
type ContainerReply struct {
	Container Container `json:"container"`
	Revision  uint64    `json:"revision"`
}

// ContainerText reads a container's text in its normal form: each line ended by
// a newline, as EncodeContainer writes it.
type ContainerText struct {
	in     *bufio.Reader
	strict bool
	rest   []byte
	buf    []byte
	lines  int
	size   uint64
}

// NewContainerText reads text as DecodeContainer does and gives its normal
// form. Reading fails with a fault.TooLarge where it goes beyond a bound, and,
// if strict, with a fault.Invalid where it is not UTF-8; the error names the
// line. Memory holds one line.
func NewContainerText(r io.Reader, strict bool) *ContainerText {
	return &ContainerText{in: bufio.NewReaderSize(r, MaxContainerLine+2), strict: strict}
}

// Lines returns how many lines have been read.
func (t *ContainerText) Lines() int { return t.lines }

// Size returns how many bytes of the normal form have been read.
func (t *ContainerText) Size() uint64 { return t.size }

// Read implements io.Reader.
func (t *ContainerText) Read(p []byte) (int, error) {
	if len(t.rest) == 0 {
		if err := t.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, t.rest)
	t.rest = t.rest[n:]
	return n, nil
}

func (t *ContainerText) next() error {
	line, err := t.in.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
	case err != nil && (!errors.Is(err, io.EOF) || len(line) == 0):
		return err
	}
	line = bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
	t.lines++
	t.size += uint64(len(line)) + 1
	switch {
	case t.lines > MaxContainerLines:
		return fault.New(fault.TooLarge, "more than %d lines", MaxContainerLines)
	case len(line) > MaxContainerLine:
		return fault.New(fault.TooLarge, "line %d is longer than %d bytes", t.lines, MaxContainerLine)
	case t.size > MaxContainerSize:
		return fault.New(fault.TooLarge, "line %d is beyond %d bytes of text", t.lines, MaxContainerSize)
	case t.strict && !utf8.Valid(line):
		return fault.New(fault.Invalid, "line %d is not UTF-8", t.lines)
	}
	t.buf = append(append(t.buf[:0], line...), '\n')
	t.rest = t.buf
	return nil
}

// EncodeContainer makes the content of an object in the store containers: the
// lines of the container of that name, each ended by a newline.
func EncodeContainer(lines []string) []byte {
	var b bytes.Buffer
	for _, l := range lines {
		b.WriteString(l)
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// DecodeContainer reads lines: those that EncodeContainer wrote, and those of a
// file. A carriage return before the newline is no part of a line, and the last
// line need not be ended.
func DecodeContainer(content []byte) []string {
	lines := []string{}
	for line := range bytes.Lines(content) {
		line = bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
		lines = append(lines, string(line))
	}
	return lines
}
