// Command rule-engine runs the rule-engine as a process of its own.
package main

import (
	"os"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	ruleengine "github.com/nightjar-edr/nightjar/services/rule-engine/service"
)

func main() {
	os.Exit(lifecycle.Program{
		Name:  access.Rules,
		Intro: "The rule-engine keeps the detection rules, runs them over all events and raises alerts.",
		Flags: ruleengine.Flags,
	}.Main(os.Args[1:], os.Stderr))
}
