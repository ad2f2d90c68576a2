// Command siem-forwarder hands the alerts of a manager to a SIEM.
package main

import (
	"os"

	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	forwarder "github.com/nightjar-edr/nightjar/services/siem-forwarder/service"
)

func main() {
	os.Exit(lifecycle.Program{
		Name:     forwarder.Name,
		Intro:    "The siem-forwarder hands alerts to a SIEM: as JSON lines, ECS, OCSF or CEF, to a file, over syslog or HTTP, at least once.",
		Flags:    forwarder.Flags,
		UserFlag: forwarder.UserFlag,
	}.Main(os.Args[1:], os.Stderr))
}
