package access_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
)

// A SIEM's name is one that NATS takes and that no service has.
func TestParseSIEMs(t *testing.T) {
	for list, want := range map[string][]string{
		"": nil, " , ": nil, "siem": {"siem"}, " a, ,b,a,": {"a", "b"}, strings.Repeat("x", 32) + ",_-9": {strings.Repeat("x", 32), "_-9"},
	} {
		if got, err := access.ParseSIEMs(list); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v", list, got, err)
		}
	}
	for _, bad := range []string{"a.b", "a b", ">", "*", "../x", "é", strings.Repeat("x", 33), access.Gateway, access.Rules, access.Backup, access.Restore, access.Canary} {
		if got, err := access.ParseSIEMs("good," + bad); err == nil || got != nil || !strings.Contains(err.Error(), `"`+bad+`"`) {
			t.Errorf("%q: %q, %v", bad, got, err)
		}
	}
}
