// Package durable writes small files that a power cut must not take or halve.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// WriteFile replaces a file as a whole. When it returns nil, the content and
// the file's name are on stable storage; when the power is cut before, the old
// file is there or the new one. Until then the content stands in the same
// folder under the name with .new behind it, which must be used by nothing else.
func WriteFile(name string, data []byte, mode fs.FileMode) error {
	tmp := name + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, name); err != nil {
		return err
	}
	if runtime.GOOS == "windows" { // has no sync of folders
		return nil
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return fmt.Errorf("sync folder of %s: %w", name, err)
	}
	return nil
}
