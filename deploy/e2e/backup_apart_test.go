package e2e

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
)

// remote are the flags by which a backup or restore reaches the house, each as
// the user who may.
func (c *cluster) remote(user string) []string {
	return []string{"--nats-url", c.urls(), "--nats-nkey", c.conf(user + ".nk"), "--nats-ca", c.conf("ca.pem")}
}

// backUp backs the house up with the key for it.
func (c *cluster) backUp(t *testing.T) (file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "backup.tar")
	out := mustRun(t, append([]string{"backup", "--to", file}, c.remote(access.Backup)...)...)
	for _, name := range stream.Record() {
		if !strings.Contains(out, name+" ") {
			t.Errorf("%s is not in the backup:\n%s", name, out)
		}
	}
	return file
}

// restore brings a backup back into NATS servers that have nothing yet.
func (c *cluster) restore(t *testing.T, file string, args ...string) {
	t.Helper()
	mustRun(t, slices.Concat([]string{"restore", "--from", file}, c.remote(access.Restore), args)...)
}

// TestBackupApart backs a house of processes of their own up under load with
// the key for it, and restores it into a fresh one that has other keys.
func TestBackupApart(t *testing.T) {
	t.Parallel()
	c := startNATS(t, 1)
	c.addAll(1)
	load := loadForBackup(t, c.on(t, 0))
	file := c.backUp(t)
	load.end()
	c.undisturbed()

	fresh := startNATS(t, 1)
	fresh.restore(t, file)
	// What is there is never written over, and nothing is added to it.
	if out, code := runCommand(t, append([]string{"restore", "--from", file}, fresh.remote(access.Restore)...)...); code != 1 || !strings.Contains(out, "has none of its streams") {
		t.Errorf("a second restore: exit code %d, %s", code, out)
	}
	fresh.addAll(1)
	load.verify(fresh.on(t, 0), func() []jetstream.Msg { return fresh.drain(t, fresh.connect("siem")) })
	fresh.undisturbed()
	// The keys of others do not do.
	for command, user := range map[string]string{"backup": access.Gateway, "restore": access.Backup} {
		args := map[string][]string{"backup": {"--to", filepath.Join(t.TempDir(), "other.tar")}, "restore": {"--from", file}}[command]
		if out, code := runCommand(t, slices.Concat([]string{command}, args, c.remote(user))...); code != 1 || !strings.Contains(out, "the key is not that of a user who may") {
			t.Errorf("%s with the key of %s: exit code %d, %s", command, user, code, out)
		}
	}
}
