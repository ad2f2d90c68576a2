package diskuse_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nightjar-edr/nightjar/pkg/diskuse"
)

const size = 1 << 20

// fill writes size bytes to a file, made with its folders, and makes sure
// that they have their blocks.
func fill(t *testing.T, name string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(bytes.Repeat([]byte("nightjar"), size/8))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func of(t *testing.T, dir string) int64 {
	t.Helper()
	n, err := diskuse.Of(dir)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestOf(t *testing.T) {
	dir := t.TempDir()
	if n := of(t, dir); n != 0 {
		t.Errorf("an empty folder has %d bytes", n)
	}
	if n := of(t, filepath.Join(dir, "missing")); n != 0 {
		t.Errorf("a missing folder has %d bytes", n)
	}
	fill(t, filepath.Join(dir, "a"))
	fill(t, filepath.Join(dir, "b", "c", "d"))
	both := of(t, dir)
	if both < 2*size || both > 3*size {
		t.Errorf("two files of %d bytes have %d", size, both)
	}
	// A link is not the file that it leads to.
	if err := os.Symlink(filepath.Join(dir, "a"), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if n := of(t, dir); n != both {
		t.Errorf("with a link %d bytes, want %d", n, both)
	}
	if err := os.Remove(filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	if n := of(t, dir); n < size || n > both-size {
		t.Errorf("after one of two is gone %d bytes", n)
	}
}

// Guard is full before the limit is reached, by a fifth of it or 512 MiB.
func TestGuard(t *testing.T) {
	dir := t.TempDir()
	fill(t, filepath.Join(dir, "file"))
	used := of(t, dir)
	const margin = 512 << 20
	for _, tc := range []struct {
		name  string
		limit int64
		full  bool
	}{
		{"no limit", 0, false},
		{"beyond", used / 2, true},
		{"at the limit", used, true},
		{"within a fifth", used + used/10, true},
		{"a fifth and more away", used + used/3, false},
		{"far away, but within 512 MiB", used + margin, false},
		{"very far away", 1 << 50, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := diskuse.NewGuard(dir, tc.limit, 0)
			if err := g.Full(); err != nil {
				t.Errorf("before the first look: %v", err)
			}
			if err := g.Measure(); err != nil {
				t.Fatal(err)
			}
			if g.Used() != used {
				t.Errorf("%d bytes used, want %d", g.Used(), used)
			}
			err := g.Full()
			if errors.Is(err, diskuse.ErrFull) != tc.full || (err != nil) != tc.full {
				t.Errorf("full: %v, want %v", err, tc.full)
			}
			if tc.full && !strings.Contains(err.Error(), "max-store") {
				t.Errorf("%q does not name the setting", err)
			}
		})
	}
}

// What is deleted makes room, at the next look.
func TestRoomAgain(t *testing.T) {
	dir := t.TempDir()
	fill(t, filepath.Join(dir, "file"))
	g := diskuse.NewGuard(dir, size, 0)
	if err := errors.Join(g.Measure(), os.RemoveAll(filepath.Join(dir, "file"))); err != nil {
		t.Fatal(err)
	}
	if err := g.Full(); !errors.Is(err, diskuse.ErrFull) {
		t.Errorf("got %v", err)
	}
	if err := g.Measure(); err != nil {
		t.Fatal(err)
	}
	if err := g.Full(); err != nil {
		t.Errorf("got %v", err)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	diskuse.NewGuard(t.TempDir(), size, 0).Run(ctx, func(err error) { t.Error(err) })
}
