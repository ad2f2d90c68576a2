// Package initramfs makes the first file system of a Linux guest.
package initramfs

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
)

// File is a regular file of the archive. Its folder is made as well.
type File struct {
	// Name is the path without a leading slash.
	Name string
	Data []byte
}

// Write writes files as a cpio archive in the format "newc" that the kernel
// unpacks (Documentation/driver-api/early-userspace/buffer-format.rst). All
// files belong to root and are executable.
func Write(w io.Writer, files []File) error {
	made := map[string]bool{"dev": true, ".": true}
	entry := func(ino int, mode uint32, name string, data []byte) error {
		// ino, mode, uid, gid, nlink, mtime, size, dev, rdev, name's size, check
		header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
			ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
		head := header + name + "\x00"
		if _, err := io.WriteString(w, head+strings.Repeat("\x00", -len(head)&3)); err != nil {
			return err
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
		_, err := w.Write(make([]byte, -len(data)&3))
		return err
	}
	ino := 1
	if err := entry(ino, 0o040755, "dev", nil); err != nil {
		return err
	}
	for _, f := range files {
		if dir := path.Dir(f.Name); !made[dir] {
			made[dir] = true
			ino++
			if err := entry(ino, 0o040755, dir, nil); err != nil {
				return err
			}
		}
		ino++
		if err := entry(ino, 0o100755, f.Name, f.Data); err != nil {
			return err
		}
	}
	return entry(0, 0, "TRAILER!!!", nil)
}

// Modules returns the paths of kernel modules and of all that they depend on,
// in the order in which they can be loaded. Names that have no file in modules
// are taken to be built into the kernel. Modules must not be compressed.
func Modules(modules fs.FS, names ...string) ([]string, error) {
	found := map[string]string{}
	err := fs.WalkDir(modules, ".", func(file string, d fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(path.Base(file), ".ko"); ok && err == nil {
			found[strings.ReplaceAll(name, "-", "_")] = file
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, errors.New("no kernel modules (*.ko)")
	}
	var order []string
	seen := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		name = strings.ReplaceAll(name, "-", "_")
		file := found[name]
		if seen[name] || file == "" {
			return nil
		}
		seen[name] = true
		needed, err := depends(modules, file)
		if err != nil {
			return fmt.Errorf("module %s: %w", file, err)
		}
		for _, n := range needed {
			if err := add(n); err != nil {
				return err
			}
		}
		order = append(order, file)
		return nil
	}
	for _, name := range names {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// depends reads from a module which others it needs.
func depends(modules fs.FS, file string) ([]string, error) {
	data, err := fs.ReadFile(modules, file)
	if err != nil {
		return nil, err
	}
	f, err := elf.NewFile(strings.NewReader(string(data)))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for field := range strings.SplitSeq(string(info), "\x00") {
		if list, ok := strings.CutPrefix(field, "depends="); ok && list != "" {
			return strings.Split(list, ","), nil
		}
	}
	return nil, nil
}
