package manager

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/gofrs/flock"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/config"
	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/services/standalone/internal/backup"
	"github.com/nightjar-edr/nightjar/services/standalone/internal/natsd"
)

// Names in the data folder.
const (
	lockName = "LOCK"
	natsDir  = "nats"
	// restoring is there while a restore has not ended, and for ever when it
	// broke off.
	restoring = "RESTORING"
)

// Remote is a NATS server that is not part of a standalone.
type Remote struct {
	// URL of the servers, comma-separated; empty for the standalone on the
	// data folder.
	URL string
	// SeedFile is a file with an NKey seed, CAFile a PEM file with the
	// certificate authority of the servers; empty for none.
	SeedFile, CAFile string
	// Replicas is how many copies a restore makes of each stream; 0 means as
	// many as there were.
	Replicas int
}

func (r *Remote) connect(user string, log *slog.Logger) (*bus.Bus, error) {
	b, err := bus.Connect(bus.Options{Service: user, URL: r.URL, SeedFile: r.SeedFile, CAFile: r.CAFile, Log: log})
	if errors.Is(err, bus.ErrOptions) {
		err = fmt.Errorf("%w: %w", lifecycle.ErrUsage, err)
	}
	return b, err
}

// Backup writes the record of the manager on a data folder, which may be
// running, or of a remote NATS server, into the file to.
func Backup(ctx context.Context, dataDir, to string, remote Remote, log *slog.Logger) (*backup.Manifest, error) {
	if remote.URL != "" {
		b, err := remote.connect(access.Backup, log)
		if err != nil {
			return nil, err
		}
		defer b.Close()
		return backup.Write(ctx, b.NC, "", to)
	}
	if _, err := os.Stat(filepath.Join(dataDir, natsDir)); err != nil {
		return nil, fmt.Errorf("data-dir %s: no manager has kept its data there: %w", dataDir, err)
	}
	lock := flock.New(filepath.Join(dataDir, lockName))
	stopped, err := lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("data-dir %s: %w", dataDir, err)
	}
	opts := bus.Options{Service: access.Backup, SeedFile: filepath.Join(dataDir, access.Backup+".nk"), Log: log}
	if stopped {
		defer func() { _ = lock.Unlock() }() // ends with the process
		if err := checkRestored(dataDir); err != nil {
			return nil, err
		}
		public, _, err := natsd.UserKey(dataDir, access.Backup)
		if err != nil {
			return nil, err
		}
		srv, err := natsd.Start(natsd.Config{Dir: filepath.Join(dataDir, natsDir), Sync: config.Sync{Always: true}, Backup: public, Log: log})
		if err != nil {
			return nil, err
		}
		defer srv.Stop()
		opts.InProcess = srv
	} else {
		opts.InProcess = natsd.Door{Dir: dataDir}
	}
	b, err := bus.Connect(opts)
	if err != nil {
		return nil, fmt.Errorf("manager on %s: %w", dataDir, err)
	}
	defer b.Close()
	return backup.Write(ctx, b.NC, dataDir, to)
}

// Restore brings a backup back, into a data folder that is empty or does not
// exist, or into a remote NATS server that has none of its streams. A data
// folder whose restore breaks off is refused by every manager.
func Restore(ctx context.Context, from, dataDir string, remote Remote, log *slog.Logger) (*backup.Manifest, error) {
	m, err := backup.ReadFile(from)
	if err != nil {
		return nil, err
	}
	if remote.URL != "" {
		b, err := remote.connect(access.Restore, log)
		if err != nil {
			return nil, err
		}
		defer b.Close()
		err = backup.Restore(ctx, from, m, backup.Into{NC: b.NC, Replicas: remote.Replicas})
		if err != nil && !errors.Is(err, backup.ErrNotEmpty) {
			err = fmt.Errorf("%w; what is restored so far is not whole: delete what NATS stores before you restore again", err)
		}
		return m, err
	}
	if err := takeEmpty(dataDir); err != nil {
		return nil, err
	}
	if err := restoreInto(ctx, from, dataDir, m, log); err != nil {
		return nil, err
	}
	if err := backup.SyncAll(dataDir); err != nil {
		return nil, err
	}
	if err := os.Remove(filepath.Join(dataDir, restoring)); err != nil {
		return nil, err
	}
	return m, nil
}

func restoreInto(ctx context.Context, from, dataDir string, m *backup.Manifest, log *slog.Logger) error {
	// What is synced at the end need not be synced message by message.
	srv, err := natsd.Start(natsd.Config{Dir: filepath.Join(dataDir, natsDir), Restoring: true, Log: log})
	if err != nil {
		return err
	}
	defer srv.Stop()
	b, err := bus.Connect(bus.Options{Service: access.Restore, Seed: srv.Seeds[access.Restore], InProcess: srv, Log: log})
	if err != nil {
		return err
	}
	defer b.Close()
	return backup.Restore(ctx, from, m, backup.Into{NC: b.NC, Dir: dataDir, Replicas: 1})
}

// takeEmpty makes the folder and marks it as one that is not whole.
func takeEmpty(dir string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("data-dir %s: %w", dir, err)
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("data-dir %s: %w", dir, err)
	}
	for _, e := range list {
		if e.Name() != "lost+found" { // of a volume's own
			return fmt.Errorf("data-dir %s is not empty: a backup is restored into an empty folder", dir)
		}
	}
	f, err := os.OpenFile(filepath.Join(dir, restoring), os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("data-dir %s: %w", dir, err)
	}
	return f.Close()
}

// checkRestored returns an error when a restore into the folder broke off.
func checkRestored(dir string) error {
	if _, err := os.Lstat(filepath.Join(dir, restoring)); err == nil {
		return fmt.Errorf("data-dir %s: a restore into it broke off; empty it and restore again", dir)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("data-dir %s: %w", dir, err)
	}
	return nil
}
