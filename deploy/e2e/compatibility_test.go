package e2e

import (
	"flag"
	"os"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "write docs/compatibility.md instead of comparing it")

// TestCompatibilityDocument holds docs/compatibility.md against the table of
// verdicts, and the table against itself.
func TestCompatibilityDocument(t *testing.T) {
	for _, s := range verdicts {
		for i, name := range s.names() {
			x := s.exchanges[i]
			switch x.verdict {
			case same:
				if x.why != "" || x.shows != "" {
					t.Errorf("%s: %s needs no reason", name, x.verdict)
				}
			case different:
				if x.why == "" || x.shows == "" {
					t.Errorf("%s: an intended difference needs a reason and what shows it", name)
				}
			case notYet:
				if x.why == "" {
					t.Errorf("%s: what is missing?", name)
				}
			default:
				t.Errorf("%s: verdict %q", name, x.verdict)
			}
		}
	}
	file := filepath.Join(root, "docs", "compatibility.md")
	want := compatibilityDocument()
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s differs from the table of verdicts: go test ./deploy/e2e -run TestCompatibilityDocument -update", file)
	}
}
