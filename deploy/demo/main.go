// Command demo shows Nightjar at work: it starts a whole manager in one
// process on a folder of its own, enrols simulated endpoints, replays sample
// events that the project brings, and prints each alert as it reaches the
// SIEM. Ctrl-C stops it and removes the folder.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/nightjar-edr/nightjar/pkg/config"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	fs := config.NewFlagSet("demo", "Starts a Nightjar manager with simulated endpoints and shows their alerts as a SIEM sees them.", os.Stdout)
	once := fs.Bool("once", false, "stop when everything has been shown, instead of waiting for Ctrl-C")
	anyPort := fs.Bool("any-port", false, "take free ports even where the usual ones are free")
	if err := config.Parse(fs, args); errors.Is(err, flag.ErrHelp) {
		return lifecycle.ExitOK
	} else if err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		return lifecycle.ExitUsage
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := demo(ctx, os.Stdout, *once, *anyPort); err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		return lifecycle.ExitFailed
	}
	return lifecycle.ExitOK
}
