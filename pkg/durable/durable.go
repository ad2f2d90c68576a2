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
	if err := fill(f, data); err != nil {
		return err
	}
	if err := os.Rename(tmp, name); err != nil {
		return err
	}
	return syncFolder(name)
}

// Create makes a file that does not exist, as a whole: nobody ever sees a part
// of it, and of several who create it at once one does, where the file system
// has hard links. Its error is fs.ErrExist for one that is there, which is left alone. When it returns nil,
// the content and the file's name are on stable storage.
func Create(name string, data []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".new")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // the content has its name by then, or is not needed
	if err := errors.Join(f.Chmod(mode), fill(f, data)); err != nil {
		return err
	}
	err = os.Link(f.Name(), name)
	if err != nil && !errors.Is(err, fs.ErrExist) { // no hard links here
		if _, err = os.Lstat(name); err == nil {
			return fmt.Errorf("create %s: %w", name, fs.ErrExist)
		}
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return err
	}
	return syncFolder(name)
}

// fill writes and closes a file, with its content on stable storage.
func fill(f *os.File, data []byte) error {
	_, err := f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// syncFolder brings the names in a file's folder to stable storage.
func syncFolder(name string) error {
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
