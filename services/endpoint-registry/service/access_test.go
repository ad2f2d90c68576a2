package registry_test

import (
	"testing"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/natstest"
)

// The service needs no more than its own rights.
func TestPermissions(t *testing.T) {
	own, all := natstest.Restricted(t, access.Registry)
	startOn(t, own, t.TempDir())
	c := client{t: t, b: all}
	endpoints := populate(c)
	must[message.RevisionReply](c, message.RegistryImport, message.ImportRequest{Endpoints: []message.EndpointRecord{
		{UUID: "00000000-0000-0000-0000-000000000001", Key: "k"},
	}})
	must[message.EndpointReply](c, message.RegistryRelease, message.EndpointRequest{UUID: endpoints[0].UUID})
	if err := own.NC.LastError(); err != nil {
		t.Errorf("the server refused something: %v", err)
	}
}
