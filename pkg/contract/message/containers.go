package message

import "bytes"

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
