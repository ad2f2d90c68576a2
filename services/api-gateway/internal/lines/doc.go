// Package lines reads newline-delimited text of any size in bounded memory.
// A line that is longer than what is accepted does not end the reading: its
// head, its size and its SHA-256 are reported and the next line follows.
package lines
