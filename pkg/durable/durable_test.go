package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestWriteFileReplacesAsAWhole(t *testing.T) {
	name := filepath.Join(t.TempDir(), "key")
	// A first attempt that was cut off left something longer behind.
	if err := os.WriteFile(name+".new", []byte("what was cut off"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"one", "another", ""} {
		if err := WriteFile(name, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(name); err != nil || string(got) != want {
			t.Errorf("the file is %q, error %v, want %q", got, err, want)
		}
	}
	if info, err := os.Stat(name); err != nil || info.Mode() != 0o600 {
		t.Errorf("the file is %v, error %v", info, err)
	}
	if _, err := os.Stat(name + ".new"); !os.IsNotExist(err) {
		t.Errorf("the new file is left behind: %v", err)
	}
}

func TestWriteFileKeepsTheOldOne(t *testing.T) {
	name := filepath.Join(t.TempDir(), "missing", "key")
	if err := WriteFile(name, nil, fs.FileMode(0o600)); !os.IsNotExist(err) {
		t.Errorf("without a folder the error is %v", err)
	}
}

func TestCreateNeverReplaces(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "key")
	made := make(chan bool)
	for range 8 {
		go func() {
			err := Create(name, []byte("one"), 0o600)
			if err != nil && !errors.Is(err, fs.ErrExist) {
				t.Errorf("create: %v", err)
			}
			made <- err == nil
		}()
	}
	count := 0
	for range 8 {
		if <-made {
			count++
		}
	}
	if count != 1 {
		t.Errorf("%d made one file", count)
	}
	if err := Create(name, []byte("another"), 0o644); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a file that is there: %v", err)
	}
	if got, err := os.ReadFile(name); err != nil || string(got) != "one" {
		t.Errorf("the file is %q, error %v", got, err)
	}
	if info, err := os.Stat(name); err != nil || info.Mode() != 0o600 {
		t.Errorf("the file is %v, error %v", info, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, error %v", left, err)
	}
}
