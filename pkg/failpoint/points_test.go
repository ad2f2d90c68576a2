package failpoint_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nightjar-edr/nightjar/pkg/failpoint"
)

// constants returns the points that points.go declares, by their Go names.
func constants(t *testing.T) map[string]string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "points.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	ast.Inspect(f, func(n ast.Node) bool {
		if s, ok := n.(*ast.ValueSpec); ok && len(s.Values) == 1 {
			if v, ok := s.Values[0].(*ast.BasicLit); ok && s.Names[0].IsExported() {
				found[s.Names[0].Name] = strings.Trim(v.Value, `"`)
			}
		}
		return true
	})
	return found
}

// Every point is listed once, and stands in the code of the services or of
// what they share, exactly once.
func TestEveryPointIsInTheCode(t *testing.T) {
	list := failpoint.List()
	if sorted := slices.Sorted(slices.Values(list)); len(slices.Compact(sorted)) != len(list) {
		t.Errorf("a point is listed twice: %v", sorted)
	}
	used := map[string]int{}
	for _, dir := range []string{"../../services", "../../pkg"} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return err
			}
			f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				return err
			}
			ast.Inspect(f, func(n ast.Node) bool {
				if call, ok := n.(*ast.CallExpr); ok && len(call.Args) > 0 && is(call.Fun, "failpoint", "Hit", "HitIn") {
					if arg, ok := call.Args[0].(*ast.SelectorExpr); ok {
						used[arg.Sel.Name]++
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	declared := constants(t)
	if len(declared) == 0 {
		t.Fatal("no points found")
	}
	for name, point := range declared {
		if used[name] != 1 {
			t.Errorf("%s stands in the code %d times, want once", name, used[name])
		}
		if !slices.ContainsFunc(list, func(s string) bool { return s == point || strings.HasPrefix(s, point+":") }) {
			t.Errorf("%s is not listed", name)
		}
	}
}

func is(f ast.Expr, pkg string, names ...string) bool {
	s, ok := f.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	x, ok := s.X.(*ast.Ident)
	return ok && x.Name == pkg && slices.Contains(names, s.Sel.Name)
}
