// Command endpoint-registry runs Nightjar's registry of endpoints as a
// program of its own.
package main

import (
	"os"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	registry "github.com/nightjar-edr/nightjar/services/endpoint-registry/service"
)

func main() {
	os.Exit(lifecycle.Program{
		Name:  access.Registry,
		Intro: "endpoint-registry knows the endpoints: their keys, hostnames and when they were last heard of.",
		Flags: registry.Flags,
	}.Main(os.Args[1:], os.Stderr))
}
