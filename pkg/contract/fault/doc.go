// Package fault is the one table of errors that cross a process border: each
// has a kind, which decides what the other side may do about it, and a
// message that is fit to be shown to a user.
package fault
