package durable

import (
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
