// Command standalone is Nightjar in one process: NATS embedded, all six
// services, for a laptop or a small site.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/nightjar-edr/nightjar/pkg/config"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/services/standalone/internal/history"
	"github.com/nightjar-edr/nightjar/services/standalone/internal/procs"
	"github.com/nightjar-edr/nightjar/services/standalone/manager"
)

const intro = `Nightjar, an EDR manager, in one process with NATS embedded.

standalone backup --help and standalone restore --help explain how the record is backed up and restored;
standalone ` + history.Command + ` --help tells how the history of a WHIDS manager is imported.`

func main() {
	// Most of the heap are buffers of the stores and of NATS, which are no
	// garbage; a lower target keeps what is garbage from doubling them.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(args) > 0 {
		switch args[0] {
		case history.Command:
			return history.Main(ctx, args[1:], os.Stdout, os.Stderr)
		case "backup":
			return runBackup(ctx, args[1:])
		case "restore":
			return runRestore(ctx, args[1:])
		}
	}
	health, args := lifecycle.IsHealth(args)
	fs := config.NewFlagSet("standalone", intro+"\n\n"+lifecycle.HealthHelp("standalone"), os.Stdout)
	cfg := manager.AddFlags(fs)
	logger := lifecycle.AddLogFlags(fs)
	fail := func(code int, err error) int {
		fmt.Fprintf(os.Stderr, "standalone: %v\n", err)
		return code
	}
	if err := config.Parse(fs, args); errors.Is(err, config.ErrHelp) {
		return lifecycle.ExitOK
	} else if err != nil {
		return fail(lifecycle.ExitUsage, err)
	}
	if health {
		return lifecycle.Health("standalone", cfg.OpsAddr, os.Stderr)
	}
	var err error
	if cfg.Log, err = logger(os.Stderr); err != nil {
		return fail(lifecycle.ExitUsage, err)
	}
	cfg.Notice = func(s string) { fmt.Fprintln(os.Stdout, s) }
	m, err := manager.New(*cfg)
	if err == nil {
		go procs.Run(ctx)
		err = m.Run(ctx)
	}
	switch {
	case errors.Is(err, lifecycle.ErrUsage):
		return fail(lifecycle.ExitUsage, err)
	case err != nil:
		return fail(lifecycle.ExitFailed, err)
	}
	return lifecycle.ExitOK
}
