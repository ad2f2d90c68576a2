package backup

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
)

// Write backs up the streams of the server behind nc and, when dir is not
// empty, the keys and certificates in it, into the file to, which must not
// exist. The file has its name only when it is whole and on stable storage.
func Write(ctx context.Context, nc *nats.Conn, dir, to string) (_ *Manifest, err error) {
	if _, err := os.Lstat(to); err == nil {
		return nil, fmt.Errorf("%s: %w", to, fs.ErrExist)
	}
	partial := to + ".partial"
	f, err := os.OpenFile(partial, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close() // closed already, or of no use
			err = errors.Join(err, os.Remove(partial))
		}
	}()
	ctx, cancel := watch(ctx, nc)
	defer cancel(nil)
	m, err := write(ctx, nc, dir, f)
	if err != nil {
		return nil, causeOr(ctx, err)
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	if err := os.Rename(partial, to); err != nil {
		return nil, err
	}
	return m, syncFile(filepath.Dir(to))
}

func write(ctx context.Context, nc *nats.Conn, dir string, f *os.File) (*Manifest, error) {
	m := &Manifest{Format: formatVersion, Begun: time.Now().UTC()}
	tw := tar.NewWriter(f)
	if dir != "" {
		if err := copyFiles(tw, dir, m); err != nil {
			return nil, err
		}
	}
	for _, name := range streams() {
		s, err := copyStream(ctx, nc, tw, name, &m.Parts)
		if err != nil {
			return nil, fmt.Errorf("stream %s: %w", name, err)
		}
		if s != nil {
			m.Streams = append(m.Streams, s)
		}
	}
	if len(m.Streams) == 0 {
		return nil, errors.New("the server has no stream of Nightjar")
	}
	m.Ended = time.Now().UTC()
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, err
	}
	if err := writeEntry(tw, manifestName, text); err != nil {
		return nil, err
	}
	return m, tw.Close()
}

// copyFiles writes the keys of the SIEMs and the certificate into the archive.
func copyFiles(tw *tar.Writer, dir string, m *Manifest) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		name = filepath.ToSlash(name)
		if d.IsDir() {
			if name != "." && name != "tls" {
				return fs.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() || !belongs(name) {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		s := newSum()
		_, _ = s.Write(data) // never fails
		m.Files = append(m.Files, s.content(name))
		m.Parts++
		return writeEntry(tw, filesPrefix+name, data)
	})
}

// belongs tells whether a file of the data folder is part of a backup.
func belongs(name string) bool {
	if rest, ok := strings.CutPrefix(name, "tls/"); ok {
		return rest != "" && !strings.ContainsAny(rest, `/\`) && rest != ".."
	}
	return strings.HasSuffix(name, ".nk") && !strings.ContainsAny(name, `/\`) && name != access.Backup+".nk"
}

// syncFile brings a file or folder to stable storage.
func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
