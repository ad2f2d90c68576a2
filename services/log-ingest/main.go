// Command log-ingest keeps what happened on the endpoints and answers
// questions about it.
package main

import (
	"os"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	ingest "github.com/nightjar-edr/nightjar/services/log-ingest/service"
)

func main() {
	p := lifecycle.Program{
		Name:  access.Ingest,
		Intro: "Keeps events and alerts by endpoint and time, and answers questions about them.",
		Flags: ingest.Flags,
	}
	os.Exit(p.Main(os.Args[1:], os.Stderr))
}
