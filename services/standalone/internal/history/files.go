package history

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// uuidName is the form of a folder's name that stands for an endpoint.
var uuidName = regexp.MustCompile(`^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$`)

// found are the files of one endpoint.
type found struct {
	endpoint string
	files    []file
}

// file is one that may be imported.
type file struct {
	path string
	size int64
	// alerts says that all lines of a log file are alerts.
	alerts bool
}

// Later pre-releases of WHIDS keep endpoints in these folders of the logs.
const (
	eventsFolder     = "events"
	detectionsFolder = "detections"
)

// findLogs returns the log files of all endpoints: those of one together, day
// by day, and what is only a part of them, the alerts, last of each day. other
// are the paths of what belongs to no endpoint.
func findLogs(root string) (all []*found, other []string, err error) {
	by := map[string]*found{}
	for _, sub := range []string{"", eventsFolder, detectionsFolder} {
		dirs, rest, err := endpointFolders(filepath.Join(root, sub))
		if sub != "" && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		for _, path := range rest {
			if base := filepath.Base(path); sub != "" || base != eventsFolder && base != detectionsFolder {
				other = append(other, path)
			}
		}
		for _, dir := range dirs {
			f := by[filepath.Base(dir)]
			if f == nil {
				f = &found{endpoint: filepath.Base(dir)}
				by[f.endpoint] = f
				all = append(all, f)
			}
			files, odd, err := under(dir)
			if err != nil {
				return nil, nil, err
			}
			other = append(other, odd...)
			for _, l := range files {
				base := filepath.Base(l.path)
				if strings.HasSuffix(base, ".index") {
					continue
				}
				l.alerts = sub == detectionsFolder || sub == "" && strings.HasPrefix(base, "alerts")
				f.files = append(f.files, l)
			}
		}
	}
	for _, f := range all {
		slices.SortStableFunc(f.files, func(a, b file) int {
			if c := cmp.Compare(filepath.Dir(a.path), filepath.Dir(b.path)); c != 0 {
				return c
			}
			return boolCompare(a.alerts, b.alerts)
		})
	}
	return all, other, nil
}

func boolCompare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// findDumps returns the dumps of all endpoints.
func findDumps(root string) (all []*found, other []string, err error) {
	dirs, other, err := endpointFolders(root)
	if err != nil {
		return nil, nil, err
	}
	for _, dir := range dirs {
		files, odd, err := under(dir)
		if err != nil {
			return nil, nil, err
		}
		all = append(all, &found{endpoint: filepath.Base(dir), files: files})
		other = append(other, odd...)
	}
	return all, other, nil
}

// endpointFolders returns the folders in root that are named as endpoints,
// and what else is there.
func endpointFolders(root string) (dirs, other []string, err error) {
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		path := filepath.Join(root, e.Name())
		info, err := os.Stat(path) // a folder may be elsewhere, behind a link
		if err == nil && info.IsDir() && uuidName.MatchString(e.Name()) {
			dirs = append(dirs, path)
		} else {
			other = append(other, path)
		}
	}
	return dirs, other, nil
}

// under returns the files in a folder and its folders, in the order of their
// paths, and the paths of what is none, such as links.
func under(dir string) (files []file, other []string, err error) {
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, nil, err
	}
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir():
			return nil
		case !e.Type().IsRegular():
			other = append(other, path)
			return nil
		}
		info, err := e.Info()
		if err == nil {
			files = append(files, file{path: path, size: info.Size()})
		}
		return err
	})
	return files, other, err
}
