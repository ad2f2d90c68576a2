package e2e

import (
	"flag"
	"os"
	"path/filepath"
	"reflect"
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
				if x.why != "" || !reflect.DeepEqual(x.want, answers{}) {
					t.Errorf("%s: the same needs no reason", name)
				}
			case different:
				if x.why == "" {
					t.Errorf("%s: an intended difference needs a reason", name)
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
