package backup

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"
)

// named is what the files of a folder of backups are called, for the time in
// UTC at which they were begun, and partial the rest of one that broke off.
const named = "nightjar-20060102T150405Z.tar"

var (
	whole   = regexp.MustCompile(`^nightjar-\d{8}T\d{6}Z\.tar$`)
	partial = regexp.MustCompile(`^nightjar-\d{8}T\d{6}Z\.tar\.partial$`)
)

// dead is how long after its last byte an unfinished backup is taken for one
// that broke off; a backup that nothing comes for gives up much earlier.
const dead = time.Hour

// In returns the file of a folder of backups that is for one begun at a time.
func In(dir string, begun time.Time) string {
	return filepath.Join(dir, begun.UTC().Format(named))
}

// Prune deletes all but the newest backups in a folder, and what is left of
// those that broke off, and returns the names of the backups that it deleted. It
// touches no file with another name than In gives, and never the one that was
// just made, whatever the clock was when the others were.
func Prune(dir string, keep int, made string) (deleted []string, err error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var old []string
	for _, e := range list {
		switch name := e.Name(); {
		case name == made:
		case whole.MatchString(name):
			old = append(old, name)
		case partial.MatchString(name):
			if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > dead {
				if err := os.Remove(filepath.Join(dir, name)); err != nil {
					return nil, err
				}
			}
		}
	}
	slices.Sort(old)
	for _, name := range old[:max(0, len(old)+1-keep)] {
		if rerr := os.Remove(filepath.Join(dir, name)); rerr != nil {
			err = errors.Join(err, rerr)
			continue
		}
		deleted = append(deleted, name)
	}
	return deleted, err
}
