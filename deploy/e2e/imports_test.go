package e2e

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
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

// TestDependenciesAreNamed demands a reason for every module that is required
// directly, and no reason for one that is not.
func TestDependenciesAreNamed(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join(root, "docs", "dependencies.md"))
	if err != nil {
		t.Fatal(err)
	}
	direct := map[string]bool{}
	for _, pattern := range []string{"pkg/go.mod", "services/*/go.mod", "deploy/*/go.mod"} {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %d files, %v", pattern, len(files), err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(text)) {
				line = strings.TrimPrefix(strings.TrimSpace(line), "require ")
				path, version, ok := strings.Cut(line, " v")
				if ok && strings.Contains(path, ".") && !strings.Contains(line, "// indirect") && !strings.Contains(line, "=>") && version != "0.0.0" {
					direct[path] = true
				}
			}
		}
	}
	for path := range direct {
		// client_model is named beside client_golang.
		if !strings.Contains(string(doc), path[strings.LastIndex(strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(path, "/v2"), "/v3"), "/v4"), "/")+1:]) {
			t.Errorf("%s is not in docs/dependencies.md", path)
		}
	}
	for line := range strings.Lines(string(doc)) {
		cell, ok := strings.CutPrefix(line, "| ")
		if name, _, _ := strings.Cut(cell, " |"); ok && strings.Contains(name, "/") {
			if first, _, _ := strings.Cut(name, ","); !direct[first] {
				t.Errorf("docs/dependencies.md names %s, which nothing requires", first)
			}
		}
	}
}
