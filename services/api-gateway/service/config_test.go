package gateway

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

// The key of the operator admin comes from its flag or else from its file, and
// a file that holds none is a mistake, not a key that is empty.
func TestAdminKeyFile(t *testing.T) {
	write := func(text string) string {
		t.Helper()
		name := filepath.Join(t.TempDir(), "admin-key")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	for _, tc := range []struct {
		key, file, want string
		unusable        bool
	}{
		{"", "", "", false},
		{"flag", "", "flag", false},
		{"", write("from a file\n"), "from a file", false},
		{"flag", write("from a file\n"), "flag", false},
		{"", write(" \n"), "", true},
		{"", filepath.Join(t.TempDir(), "missing"), "", true},
	} {
		key := tc.key
		if err := readAdminKey(&key, tc.file); key != tc.want || errors.Is(err, lifecycle.ErrUsage) != tc.unusable {
			t.Errorf("flag %q, file %q: %q, %v", tc.key, tc.file, key, err)
		}
	}
}
