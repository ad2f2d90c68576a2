package ruleengine

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/nightjar-edr/nightjar/services/rule-engine/internal/rules"
)

// readFolders reads the folders of rules and containers that the settings
// name.
func (s *Service) readFolders() (err error) {
	s.imported, s.containerFiles = s.cfg.rules, s.cfg.containers
	if s.cfg.RulesDir != "" && s.imported == nil {
		if s.imported, err = readRuleFolder(s.cfg.RulesDir); err != nil {
			return err
		}
	}
	if s.cfg.ContainersDir != "" && s.containerFiles == nil {
		if s.containerFiles, err = readContainerFolder(s.cfg.ContainersDir); err != nil {
			return err
		}
	}
	if dir := s.cfg.OtherRulesDir; s.present("rules", dir) {
		other, err := readRuleFolder(dir)
		if err != nil {
			return err
		}
		if hidden := s.imported.complete(other); len(hidden) > 0 {
			s.cfg.Log.Warn("rules of rules-dir are preferred to those of the same name", "dir", dir, "rules", hidden)
		}
		s.imported = other
	}
	if dir := s.cfg.OtherContainersDir; s.present("containers", dir) {
		other, err := readContainerFolder(dir)
		if err != nil {
			return err
		}
		for _, f := range other {
			if slices.ContainsFunc(s.containerFiles, func(own containerFile) bool { return own.name == f.name }) {
				s.cfg.Log.Warn("container of containers-dir is preferred to the one of the same name", "dir", dir, "container", f.name)
				continue
			}
			s.containerFiles = append(s.containerFiles, f)
		}
	}
	return nil
}

// present tells whether another manager's folder is set and there. One that is
// not there counts as empty, as it does for that manager.
func (s *Service) present(what, dir string) bool {
	if dir == "" {
		return false
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		s.cfg.Log.Warn("folder to take over does not exist", "of", what, "dir", dir)
		return false
	}
	return true
}

// complete adds to other what f, which may be nil, holds. Where both have a
// rule, the one of f stays, and its name is returned.
func (f *ruleFolder) complete(other *ruleFolder) (hidden []string) {
	if f == nil {
		return nil
	}
	own := make(map[string]bool, len(f.list))
	for _, r := range f.list {
		own[r.Name] = true
	}
	other.list = slices.DeleteFunc(other.list, func(r *rules.Rule) bool {
		if own[r.Name] {
			hidden = append(hidden, r.Name)
		}
		return own[r.Name]
	})
	other.list = append(other.list, f.list...)
	slices.SortFunc(other.list, func(a, b *rules.Rule) int { return strings.Compare(a.Name, b.Name) })
	other.dirs = append(other.dirs, f.dirs...)
	return hidden
}
