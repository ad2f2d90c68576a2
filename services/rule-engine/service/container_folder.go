package ruleengine

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

// containerFile is a file that holds the lines of a container. digest is the
// one that the container has in the object store when it holds them.
type containerFile struct{ name, dir, path, digest string }

// readContainerFolder finds the container files below a folder, sorted by path.
// A container's name is that of its file up to the first dot. One file that is
// wrong makes the folder unusable; the error names it.
func readContainerFolder(dir string) ([]containerFile, error) {
	files, err := parseContainerFolder(dir)
	if err != nil {
		return nil, fmt.Errorf("%w: containers-dir %s: %w", lifecycle.ErrUsage, dir, err)
	}
	return files, nil
}

func parseContainerFolder(dir string) ([]containerFile, error) {
	paths, err := listFiles(dir)
	if err != nil {
		return nil, err
	}
	files := make([]containerFile, 0, len(paths))
	fileOf := make(map[string]string, len(paths))
	for _, path := range paths {
		name, _, _ := strings.Cut(filepath.Base(path), ".")
		f := containerFile{name: name, dir: dir, path: path}
		if other, dup := fileOf[name]; dup {
			return nil, fmt.Errorf("files %s and %s are both of container %s", other, relative(dir, path), name)
		}
		if !message.IsContainerName(name) {
			return nil, fmt.Errorf("file %s: %q cannot be the name of a container: want 1 to 128 letters, digits, underscores or dashes before the first dot",
				relative(dir, path), name)
		}
		err := f.read(func(text *message.ContainerText) (err error) {
			f.digest, err = digestOf(text)
			return err
		})
		if err != nil {
			return nil, f.fail(err)
		}
		fileOf[name] = relative(dir, path)
		files = append(files, f)
	}
	return files, nil
}

// read gives the file's lines to a function.
func (f containerFile) read(use func(*message.ContainerText) error) error {
	file, err := os.Open(f.path)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // it was only read
	return use(message.NewContainerText(file, false))
}

// fail adds the file to an error.
func (f containerFile) fail(err error) error {
	return fmt.Errorf("file %s of container %s: %w", relative(f.dir, f.path), f.name, err)
}
