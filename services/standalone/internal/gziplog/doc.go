// Package gziplog reads lines out of a file of gzip members (RFC 1952, 2.2),
// one behind the other, of which some may be damaged: a process that is killed
// leaves a member without an end, and the next one it writes stands right
// behind it, where no common reader gets.
//
// It gives every line that can be had and never one that was not written. A
// whole member is checked against its checksum before its lines are given. Of
// one that breaks off the lines before the break are given, up to the header
// of the next member and not into it, and said to be unchecked. A line that
// is cut off by damage is none.
package gziplog
