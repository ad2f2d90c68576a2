//go:build unix

package diskuse

import (
	"io/fs"
	"syscall"
)

// occupied counts the blocks of a file: stores reserve large files that they
// fill only later.
func occupied(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int64(st.Blocks) * 512 //nolint:unconvert // its type differs between systems
	}
	return info.Size()
}
