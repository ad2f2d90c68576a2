// Command api-gateway is Nightjar's door: the admin API for operators and the
// agent API for endpoints.
package main

import (
	"os"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	gateway "github.com/nightjar-edr/nightjar/services/api-gateway/service"
)

func main() {
	p := lifecycle.Program{
		Name:  access.Gateway,
		Intro: "api-gateway serves Nightjar's admin API to operators and its agent API to endpoints.",
		Flags: gateway.Flags,
	}
	os.Exit(p.Main(os.Args[1:], os.Stderr))
}
