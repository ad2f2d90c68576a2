package e2e

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const root, module = "../..", "github.com/nightjar-edr/nightjar/"

// TestImports holds the walls of the house: a service imports pkg and never
// another service; pkg imports no service; only standalone imports them all.
func TestImports(t *testing.T) {
	files := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		files++
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range f.Imports {
			target, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if why := forbidden(filepath.ToSlash(rel), target); why != "" {
				t.Errorf("%s imports %s: %s", rel, target, why)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 50 {
		t.Fatalf("only %d files were looked at", files)
	}
}

func forbidden(file, target string) string {
	target, ours := strings.CutPrefix(target, module)
	if !ours {
		return ""
	}
	here := strings.Split(file, "/")
	there := strings.Split(target, "/")
	switch {
	case there[0] != "services":
		return ""
	case here[0] == "pkg":
		return "pkg stands below the services"
	case here[0] == "services" && here[1] != there[1] && here[1] != "standalone":
		return "services talk over NATS, never by import"
	}
	return ""
}

// TestForbiddenIsSeen shows that the rule above can fail.
func TestForbiddenIsSeen(t *testing.T) {
	for _, c := range []struct {
		file, target string
		allowed      bool
	}{
		{"services/log-ingest/service/service.go", module + "services/rule-engine/service", false},
		{"pkg/bus/bus.go", module + "services/rule-engine/service", false},
		{"services/log-ingest/main.go", module + "services/log-ingest/service", true},
		{"services/standalone/manager/manager.go", module + "services/log-ingest/service", true},
		{"services/log-ingest/service/service.go", module + "pkg/bus", true},
	} {
		if got := forbidden(c.file, c.target) == ""; got != c.allowed {
			t.Errorf("%s importing %s: allowed %v", c.file, c.target, got)
		}
	}
}
