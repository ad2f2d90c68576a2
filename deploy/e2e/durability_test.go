package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDurabilityPageNamesTests holds the page on durability against the tests
// that there are: a promise whose test was renamed or deleted is only a claim.
func TestDurabilityPageNamesTests(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root, "docs", "durability.md"))
	if err != nil {
		t.Fatal(err)
	}
	exists := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range declared.FindAllSubmatch(text, -1) {
			exists[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for _, row := range regexp.MustCompile(`(?m)^\| .*\|$`).FindAllString(string(page), -1) {
		if strings.HasPrefix(row, "| promise") {
			continue
		}
		rows++
		names := regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(row, -1)
		if len(names) == 0 {
			t.Errorf("a promise without a test: %s", row)
		}
		for _, n := range names {
			if !exists[n[1]] {
				t.Errorf("%s does not exist: %s", n[1], row)
			}
		}
	}
	if rows == 0 {
		t.Error("the page makes no promise")
	}
}
