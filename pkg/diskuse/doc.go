// Package diskuse measures how much of the disk a folder uses and holds it
// against a limit.
package diskuse
