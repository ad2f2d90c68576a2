package manifests

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

// The unit runs standalone with a configuration that it understands, writes
// where it may write, and is given the time that a clean stop takes.
func TestSystemd(t *testing.T) {
	unit, settings := read(t, "deploy", "systemd", "nightjar.service"), read(t, "deploy", "systemd", "standalone.yaml")
	understood(t, "standalone", settings, nil)
	value := func(key string) string {
		m := regexp.MustCompile(`(?m)^` + key + `=(.*)$`).FindStringSubmatch(unit)
		if m == nil {
			t.Fatalf("no %s", key)
		}
		return m[1]
	}
	if got := value("ExecStart"); got != "/usr/local/bin/nightjar --config /etc/nightjar/standalone.yaml" {
		t.Errorf("ExecStart %s", got)
	}
	dir := "/var/lib/" + value("StateDirectory")
	if !strings.Contains(settings, "\ndata-dir: "+dir+"\n") {
		t.Errorf("the unit lets it write to %s", dir)
	}
	if stop, err := time.ParseDuration(value("TimeoutStopSec") + "s"); err != nil || stop <= lifecycle.StopTimeout {
		t.Errorf("TimeoutStopSec %s", value("TimeoutStopSec"))
	}
	for _, want := range []string{"u " + value("User") + " ", dir} {
		if !strings.Contains(read(t, "deploy", "systemd", "sysusers.conf"), want) {
			t.Errorf("sysusers.conf has no %q", want)
		}
	}
	if want := "d " + dir + " 0750 " + value("User") + " " + value("Group"); !strings.Contains(read(t, "deploy", "systemd", "tmpfiles.conf"), want) {
		t.Errorf("tmpfiles.conf has no %q", want)
	}
}
