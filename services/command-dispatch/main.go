// Command command-dispatch runs Nightjar's command queue as a program of its
// own.
package main

import (
	"os"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	dispatch "github.com/nightjar-edr/nightjar/services/command-dispatch/service"
)

func main() {
	os.Exit(lifecycle.Program{
		Name:  access.Commands,
		Intro: "command-dispatch queues commands for endpoints, hands each out once and keeps the results.",
		Flags: dispatch.Flags,
	}.Main(os.Args[1:], os.Stderr))
}
