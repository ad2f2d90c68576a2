package ruleengine

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/services/rule-engine/internal/detect"
	"github.com/nightjar-edr/nightjar/services/rule-engine/internal/rules"
)

// ruleFolder is what folders of rule files hold.
type ruleFolder struct {
	dirs []string
	list []*rules.Rule // sorted by name
}

// importSummary tells what an import did.
type importSummary struct {
	added, updated, unchanged int
	// gone are rules that an earlier import brought and the folder has no
	// longer.
	gone []string
}

// readRuleFolder reads all rule files below a folder, with all templates there.
// One thing that is wrong makes the folder unusable; the error names the file,
// the rule and the statement.
func readRuleFolder(dir string) (*ruleFolder, error) {
	f, err := parseRuleFolder(dir)
	if err != nil {
		return nil, fmt.Errorf("%w: rules-dir %s: %w", lifecycle.ErrUsage, dir, err)
	}
	return f, nil
}

func parseRuleFolder(dir string) (*ruleFolder, error) {
	ruleFiles, err := listFiles(dir, ".gen", ".gene")
	if err != nil {
		return nil, err
	}
	templateFiles, err := listFiles(dir, ".toml", ".tpl")
	if err != nil {
		return nil, err
	}
	var sets []*rules.Templates
	for _, path := range templateFiles {
		data, err := readLimited(path, rules.MaxTemplateFileSize)
		if err != nil {
			return nil, err
		}
		t, err := rules.ParseTemplates(relative(dir, path), data)
		if err != nil {
			return nil, err
		}
		sets = append(sets, t)
	}
	templates, err := rules.Merge(sets...)
	if err != nil {
		return nil, err
	}
	f := &ruleFolder{dirs: []string{dir}}
	fileOf := map[string]string{}
	for _, path := range ruleFiles {
		name := relative(dir, path)
		data, err := readLimited(path, rules.MaxBodySize)
		if err != nil {
			return nil, err
		}
		list, err := rules.Parse(data, templates)
		if errors.Is(err, rules.ErrEmpty) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("file %s: %w", name, withStatement(err))
		}
		for _, r := range list {
			if other, dup := fileOf[r.Name]; dup {
				return nil, fmt.Errorf("file %s: %w, in file %s", name, &rules.ExistsError{Rule: r.Name}, other)
			}
			fileOf[r.Name] = name
		}
		f.list = append(f.list, list...)
	}
	if _, _, err := detect.Compile(f.list, nil); err != nil {
		var ce *rules.CompileError
		if errors.As(err, &ce) {
			return nil, fmt.Errorf("file %s: %w", fileOf[ce.Rule], withStatement(err))
		}
		return nil, err
	}
	slices.SortFunc(f.list, func(a, b *rules.Rule) int { return strings.Compare(a.Name, b.Name) })
	return f, nil
}

// withStatement adds the statement to the error of a rule that does not show it.
func withStatement(err error) error {
	var ce *rules.CompileError
	if errors.As(err, &ce) && ce.Statement != "" && !strings.Contains(err.Error(), ce.Statement) {
		return fmt.Errorf("%w, statement %s", err, ce.Statement)
	}
	return err
}

// listFiles returns the files with one of the extensions below a folder, sorted.
// Names that begin with a dot are passed over: Kubernetes keeps the versions of
// a mounted ConfigMap under such names.
func listFiles(dir string, extensions ...string) ([]string, error) {
	root, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(root)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, errors.New("not a folder")
	}
	var files []string
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case path == root:
			return nil
		case strings.HasPrefix(d.Name(), "."):
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case d.IsDir():
			return nil
		}
		if len(extensions) > 0 && !slices.Contains(extensions, strings.ToLower(filepath.Ext(path))) {
			return nil
		}
		// Links to files are followed, links to folders are not.
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		if info.Mode().IsRegular() {
			files = append(files, path)
		}
		return nil
	})
	return files, err
}

func readLimited(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("file %s has %d bytes, at most %d are allowed", path, info.Size(), limit)
	}
	return os.ReadFile(path)
}

// relative names a file for an error.
func relative(dir, path string) string {
	if root, err := filepath.EvalSymlinks(dir); err == nil {
		if rel, err := filepath.Rel(root, path); err == nil {
			return rel
		}
	}
	return path
}

// mergeInto makes rules live whose text is not the one of their last import. A
// rule that is as it was imported before changes nothing, so that what was
// changed or deleted since by other means stays so.
func (f *ruleFolder) mergeInto(rec *record) (sum importSummary) {
	if rec.Imported == nil {
		rec.Imported = make(map[string]string)
	}
	present := make(map[string]bool, len(f.list))
	for _, r := range f.list {
		present[r.Name] = true
		hash := sha256.Sum256([]byte(r.Text()))
		text := hex.EncodeToString(hash[:])
		if rec.Imported[r.Name] == text {
			sum.unchanged++
			continue
		}
		rec.Imported[r.Name] = text
		if _, exists := rec.find(r.Name); exists {
			sum.updated++
		} else {
			sum.added++
		}
		rec.put(stored(r, sourceDir))
	}
	for name := range rec.Imported {
		if !present[name] {
			sum.gone = append(sum.gone, name)
		}
	}
	slices.Sort(sum.gone)
	return sum
}
