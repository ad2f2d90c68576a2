package target

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// stdout writes lines to standard output. Taken means that the reader's pipe,
// or the terminal, has them.
type stdout struct{ w io.Writer }

func newStdout() *stdout { return &stdout{w: os.Stdout} }

// Send writes all records at once.
func (s *stdout) Send(_ context.Context, records []Record) []error {
	if _, err := s.w.Write(lines(records)); err != nil {
		return all(len(records), fmt.Errorf("write to standard output: %w", err))
	}
	return all(len(records), nil)
}

// Close does nothing.
func (s *stdout) Close() error { return nil }

func lines(records []Record) []byte {
	var b bytes.Buffer
	for i := range records {
		b.Write(records[i].Body)
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// file appends lines to a file. Taken means that they are on stable storage.
// Something else may move the file away; it is created anew for the next
// records.
type file struct {
	path string
	f    *os.File
}

func openFile(path string) (*file, error) {
	t := &file{path: path}
	if err := t.open(); err != nil {
		return nil, fmt.Errorf("output: %w", err)
	}
	return t, nil
}

// open opens the file and ends a line that was left without its end.
func (t *file) open() error {
	f, err := os.OpenFile(t.path, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	err = func() error {
		st, err := f.Stat()
		if err != nil || !st.Mode().IsRegular() || st.Size() == 0 {
			return err
		}
		last := make([]byte, 1)
		if _, err := f.ReadAt(last, st.Size()-1); err != nil {
			return err
		}
		if last[0] != '\n' {
			_, err = f.Write([]byte{'\n'})
		}
		return err
	}()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	t.f = f
	return nil
}

// follow opens the file anew where the path does not lead to it any more.
func (t *file) follow() error {
	if t.f != nil {
		there, err := os.Stat(t.path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		here, err2 := t.f.Stat()
		if err == nil && err2 == nil && os.SameFile(there, here) {
			return nil
		}
		_ = t.f.Close()
		t.f = nil
	}
	if err := t.open(); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(t.path))
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	_ = dir.Sync() // not every system can
	return nil
}

// Send appends all records and waits for stable storage. After an error the
// file is as long as before.
func (t *file) Send(_ context.Context, records []Record) []error {
	err := func() error {
		if err := t.follow(); err != nil {
			return err
		}
		st, err := t.f.Stat()
		if err != nil {
			return err
		}
		if _, err = t.f.Write(lines(records)); err == nil {
			err = t.f.Sync()
			if !st.Mode().IsRegular() {
				err = nil // a pipe or a terminal has no storage
			}
		}
		if err != nil && st.Mode().IsRegular() {
			err = errors.Join(err, t.f.Truncate(st.Size()))
		}
		return err
	}()
	if err != nil {
		return all(len(records), fmt.Errorf("output: %w", err))
	}
	return all(len(records), nil)
}

// Close closes the file.
func (t *file) Close() error {
	if t.f == nil {
		return nil
	}
	return t.f.Close()
}
