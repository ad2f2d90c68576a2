// Command report-scorer runs Nightjar's reports and scores as a program of
// its own.
package main

import (
	"os"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	scorer "github.com/nightjar-edr/nightjar/services/report-scorer/service"
)

func main() {
	os.Exit(lifecycle.Program{
		Name:  access.Scorer,
		Intro: "report-scorer folds alerts into a report and a score for each endpoint.",
		Flags: scorer.Flags,
	}.Main(os.Args[1:], os.Stderr))
}
