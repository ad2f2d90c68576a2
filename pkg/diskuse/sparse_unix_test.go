//go:build unix

package diskuse_test

import (
	"os"
	"path/filepath"
	"testing"
)

// Stores reserve large files: what counts is what they fill.
func TestSparse(t *testing.T) {
	dir := t.TempDir()
	fill(t, filepath.Join(dir, "full"))
	before := of(t, dir)
	name := filepath.Join(dir, "reserved")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, 1<<30); err != nil {
		t.Fatal(err)
	}
	if n := of(t, dir); n < before || n > before+size {
		t.Errorf("with 1 GiB reserved %d bytes, want about %d", n, before)
	}
}
