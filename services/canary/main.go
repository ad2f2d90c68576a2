// Command canary shows that a manager detects, stores, scores and commands.
package main

import (
	"os"

	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	canary "github.com/nightjar-edr/nightjar/services/canary/service"
)

func main() {
	os.Exit(lifecycle.Program{
		Name:  canary.Name,
		Intro: "The canary shows that a manager works: again and again it sends a known-bad event and a command through it, and exports as metrics what came back and when.",
		Flags: canary.Flags,
	}.Main(os.Args[1:], os.Stderr))
}
