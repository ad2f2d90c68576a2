package backup_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/nightjar-edr/nightjar/services/standalone/internal/backup"
)

// Of a folder of backups the newest are kept, and of what else is in it
// nothing is touched but the rest of a backup that broke off long ago.
func TestPrune(t *testing.T) {
	dir := t.TempDir()
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.FixedZone("", 3600))
	made := filepath.Base(backup.In(dir, now.AddDate(-1, 0, 0))) // the clock was set back
	var all []string
	for day := range 5 {
		all = append(all, filepath.Base(backup.In(dir, now.AddDate(0, 0, day))))
	}
	if all[0] != "nightjar-20260304T040607Z.tar" {
		t.Errorf("named %s", all[0])
	}
	fresh, stale := all[3]+".partial", all[4]+".partial"
	others := []string{"nightjar.tar", "nightjar-20260304T040607Z.tar.old", "keys", "my-nightjar-20260304T040607Z.tar"}
	for _, name := range slices.Concat(all, others, []string{made, fresh, stale}) {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chtimes(filepath.Join(dir, stale), now, now.AddDate(0, -9, 0)); err != nil {
		t.Fatal(err)
	}
	for _, keep := range []int{7, 3, 3, 1} {
		deleted, err := backup.Prune(dir, keep, made)
		if err != nil {
			t.Fatal(err)
		}
		if want := all[:max(0, len(all)+1-keep)]; !slices.Equal(deleted, want) {
			t.Errorf("of %d to keep: deleted %v, want %v", keep, deleted, want)
		}
		all = all[len(deleted):]
	}
	var left []string
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		left = append(left, e.Name())
	}
	want := slices.Concat(all, others, []string{made, fresh})
	slices.Sort(want)
	if !slices.Equal(left, want) {
		t.Errorf("left %v, want %v", left, want)
	}
	if _, err := backup.Prune(filepath.Join(dir, "none"), 1, ""); err == nil {
		t.Error("no error for a folder that does not exist")
	}
}
