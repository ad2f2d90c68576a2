package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/config"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/services/standalone/internal/backup"
	"github.com/nightjar-edr/nightjar/services/standalone/manager"
)

const (
	backupIntro = `Writes the record of a manager - all streams, buckets and object stores, the keys of the SIEMs, the
certificate - into one file. The manager may be running. With --nats-url it is that of services
that run apart, without keys and certificates. The file holds secrets: keep it as you keep keys.
In a folder the file is called nightjar-<time>.tar.`
	restoreIntro = `Brings a backup back: into a data folder that is empty or does not exist, for a manager to be
started on, or with --nats-url into a NATS server that has none of its streams. The stores of the
services are built again at their start; those of services that run apart must be deleted before.`
)

// addRemote adds the flags that name a NATS server.
func addRemote(fs *flag.FlagSet) *manager.Remote {
	r := &manager.Remote{}
	fs.StringVar(&r.URL, "nats-url", "", "address of the NATS servers of services that run apart, comma-separated")
	fs.StringVar(&r.SeedFile, "nats-nkey", "", "file with the NKey seed of the user backup or restore for --nats-url; deploy/nats makes both")
	fs.StringVar(&r.CAFile, "nats-ca", "", "PEM file with the certificate authority for --nats-url")
	return r
}

func runBackup(ctx context.Context, args []string) int {
	fs := config.NewFlagSet("standalone backup", backupIntro, os.Stdout)
	dir := fs.String("data-dir", "./data", "data folder of the manager")
	to := fs.String("to", "", "file to write, which must not exist, or folder to write it into")
	keep := fs.Int("keep", 0, "delete the older ones of more backups than this in the folder --to; 0 deletes none")
	remote := addRemote(fs)
	return command(ctx, "backup", fs, args, func(ctx context.Context, log *slog.Logger) error {
		if *to == "" {
			return fmt.Errorf("%w: --to names no file", lifecycle.ErrUsage)
		}
		info, err := os.Stat(*to)
		folder := err == nil && info.IsDir()
		if *keep < 0 || *keep > 0 && !folder {
			return fmt.Errorf("%w: --keep %d: want a number of backups in a folder that --to names", lifecycle.ErrUsage, *keep)
		}
		file := *to
		if folder {
			file = backup.In(*to, time.Now())
		}
		m, err := manager.Backup(ctx, *dir, file, *remote, log)
		if err != nil {
			return err
		}
		for _, s := range m.Streams {
			fmt.Printf("%-16s %10d messages up to sequence %d\n", s.Name, s.Messages, s.LastSeq)
		}
		fmt.Printf("%s holds what was acknowledged before %s\n", file, m.Begun.Format(time.RFC3339))
		if *keep == 0 {
			return nil
		}
		deleted, err := backup.Prune(*to, *keep, filepath.Base(file))
		for _, name := range deleted {
			fmt.Printf("deleted %s\n", name)
		}
		return err
	})
}

func runRestore(ctx context.Context, args []string) int {
	fs := config.NewFlagSet("standalone restore", restoreIntro, os.Stdout)
	from := fs.String("from", "", "file that standalone backup wrote")
	dir := fs.String("data-dir", "./data", "folder to restore into, empty or missing")
	remote := addRemote(fs)
	fs.IntVar(&remote.Replicas, "replicas", 0, "copies of each stream, with --nats-url; 0 means as many as there were")
	return command(ctx, "restore", fs, args, func(ctx context.Context, log *slog.Logger) error {
		if *from == "" {
			return fmt.Errorf("%w: --from names no file", lifecycle.ErrUsage)
		}
		if r := remote.Replicas; r < 0 || r > 5 {
			return fmt.Errorf("%w: --replicas %d: at most 5", lifecycle.ErrUsage, r)
		}
		m, err := manager.Restore(ctx, *from, *dir, *remote, log)
		if err != nil {
			return err
		}
		for _, s := range m.Streams {
			fmt.Printf("%-16s %10d messages up to sequence %d\n", s.Name, s.Messages, s.LastSeq)
			for _, c := range s.Consumers {
				fmt.Printf("%-16s consumer %s goes on behind sequence %d\n", "", c.Name, c.AckFloor)
			}
		}
		for _, f := range m.Files {
			fmt.Printf("%s\n", f.Name)
		}
		fmt.Printf("restored what was acknowledged before %s\n", m.Begun.Format(time.RFC3339))
		return nil
	})
}

// command reads flags, works until it is done or ctx ends, and returns
// the exit code.
func command(ctx context.Context, name string, fs *flag.FlagSet, args []string, work func(context.Context, *slog.Logger) error) int {
	logger := lifecycle.AddLogFlags(fs)
	fail := func(code int, err error) int {
		fmt.Fprintf(os.Stderr, "standalone %s: %v\n", name, err)
		return code
	}
	if err := config.Parse(fs, args); errors.Is(err, config.ErrHelp) {
		return lifecycle.ExitOK
	} else if err != nil {
		return fail(lifecycle.ExitUsage, err)
	}
	log, err := logger(os.Stderr)
	if err != nil {
		return fail(lifecycle.ExitUsage, err)
	}
	switch err := work(ctx, log); {
	case errors.Is(err, lifecycle.ErrUsage):
		return fail(lifecycle.ExitUsage, err)
	case err != nil:
		return fail(lifecycle.ExitFailed, err)
	}
	return lifecycle.ExitOK
}
