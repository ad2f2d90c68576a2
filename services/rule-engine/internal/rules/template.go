package rules

import (
	"bufio"
	"bytes"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml"
)

// MaxTemplateFileSize is the largest template file in bytes.
const MaxTemplateFileSize = 256 << 10

var (
	templateName = regexp.MustCompile(`^[\w.-]+$`)
	// A reference starts with a letter, so that "{{2}}", which is a valid
	// regular expression, is none.
	templateRef = regexp.MustCompile(`\{\{([A-Za-z_][\w.-]*)\}\}`)
)

// Templates are named pieces of regular expressions. A match refers to one as
// {{name}}. A template may refer to others. The zero value and nil hold none.
type Templates struct {
	values map[string]string
	// Every name is either in resolved, with all references expanded, or in
	// broken.
	resolved map[string]string
	broken   map[string]error
}

// Len returns the number of templates.
func (t *Templates) Len() int {
	if t == nil {
		return 0
	}
	return len(t.values)
}

// Names returns the names of all templates, sorted.
func (t *Templates) Names() []string {
	if t == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(t.values))
}

// ParseTemplates reads the templates of one file. The extension of its name
// decides on the syntax: ".toml" for lines such as name = 'regexp', ".tpl" for
// lines such as name: 'regexp'. Lines that begin with # are comments.
func ParseTemplates(fileName string, data []byte) (*Templates, error) {
	if len(data) > MaxTemplateFileSize {
		return nil, fmt.Errorf("%w: template file %s has %d bytes, at most %d are allowed", ErrTooLarge, fileName, len(data), MaxTemplateFileSize)
	}
	var (
		values map[string]string
		err    error
	)
	switch ext := strings.ToLower(filepath.Ext(fileName)); ext {
	case ".toml":
		values, err = parseTOML(data)
	case ".tpl":
		values, err = parseTPL(data)
	default:
		err = fmt.Errorf("unknown extension %q, want .toml or .tpl", ext)
	}
	if err != nil {
		return nil, fmt.Errorf("%w file %s: %w", ErrTemplate, fileName, err)
	}
	t := &Templates{values: values}
	if err := t.resolve(); err != nil {
		return nil, fmt.Errorf("%w file %s: %w", ErrTemplate, fileName, err)
	}
	return t, nil
}

// Merge returns the templates of all given sets. A name with two different
// values is an error.
func Merge(sets ...*Templates) (*Templates, error) {
	out := &Templates{values: make(map[string]string)}
	for _, t := range sets {
		for _, name := range t.Names() {
			value := t.values[name]
			if have, ok := out.values[name]; ok && have != value {
				return nil, fmt.Errorf("%w %q is defined twice with different values", ErrTemplate, name)
			}
			out.values[name] = value
		}
	}
	if err := out.resolve(); err != nil {
		return nil, err
	}
	return out, nil
}

func parseTOML(data []byte) (values map[string]string, err error) {
	defer func() {
		if p := recover(); p != nil {
			values, err = nil, fmt.Errorf("malformed TOML: %v", p)
		}
	}()
	tree, err := toml.LoadBytes(data)
	if err != nil {
		return nil, err
	}
	values = make(map[string]string)
	doc := tree.ToMap()
	for _, name := range slices.Sorted(maps.Keys(doc)) {
		value, ok := doc[name].(string)
		if !ok {
			return nil, fmt.Errorf("template %q is not a string", name)
		}
		if !templateName.MatchString(name) {
			return nil, fmt.Errorf("invalid template name %q", name)
		}
		values[name] = value
	}
	return values, nil
}

func parseTPL(data []byte) (map[string]string, error) {
	values := make(map[string]string)
	sc := bufio.NewScanner(bytes.NewReader(data))
	sc.Buffer(nil, MaxTemplateFileSize+1)
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		if !ok || len(value) < 2 || value[0] != '\'' || value[len(value)-1] != '\'' {
			return nil, fmt.Errorf("line %d: want name: 'regexp'", n)
		}
		if !templateName.MatchString(name) {
			return nil, fmt.Errorf("line %d: invalid template name %q", n, name)
		}
		if _, dup := values[name]; dup {
			return nil, fmt.Errorf("line %d: template %q is defined twice", n, name)
		}
		values[name] = value[1 : len(value)-1]
	}
	if err := sc.Err(); err != nil {
		return nil, err
	}
	return values, nil
}

// maxResolved bounds the memory that references between templates can take.
const maxResolved = 64 << 20

// resolve expands the references between templates. What cannot be expanded
// becomes an error of the rule that uses it.
func (t *Templates) resolve() error {
	t.resolved = make(map[string]string, len(t.values))
	t.broken = make(map[string]error)
	total := 0
	for _, name := range t.Names() {
		t.resolveOne(name, make(map[string]bool))
		if total += len(t.resolved[name]); total > maxResolved {
			return fmt.Errorf("%w: templates exceed %d bytes when they are expanded", ErrTooLarge, maxResolved)
		}
	}
	return nil
}

func (t *Templates) resolveOne(name string, busy map[string]bool) (string, error) {
	if value, ok := t.resolved[name]; ok {
		return value, nil
	}
	if err, ok := t.broken[name]; ok {
		return "", err
	}
	value, ok := t.values[name]
	if !ok {
		return "", fmt.Errorf("Unknown %w {{%s}}", ErrTemplate, name)
	}
	if busy[name] {
		return "", fmt.Errorf("%w {{%s}} refers to itself", ErrTemplate, name)
	}
	busy[name] = true
	value, err := replace(value, MaxRegexpSize, func(ref string) (string, error) { return t.resolveOne(ref, busy) })
	if err != nil {
		t.broken[name] = err
		return "", err
	}
	t.resolved[name] = value
	return value, nil
}

// expand replaces all references in a match.
func (t *Templates) expand(match string) (string, error) {
	expanded, err := replace(match, MaxRuleSize, func(name string) (string, error) {
		if t == nil {
			return "", fmt.Errorf("Unknown %w {{%s}}", ErrTemplate, name)
		}
		return t.resolveOne(name, nil)
	})
	if err != nil {
		return match, fmt.Errorf("%w in %s", err, excerpt(match))
	}
	return expanded, nil
}

func replace(s string, limit int, value func(name string) (string, error)) (string, error) {
	if !strings.Contains(s, "{{") {
		return s, nil
	}
	var (
		b    strings.Builder
		last int
	)
	for _, ref := range templateRef.FindAllStringSubmatchIndex(s, -1) {
		v, err := value(s[ref[2]:ref[3]])
		if err != nil {
			return "", err
		}
		b.WriteString(s[last:ref[0]])
		b.WriteString(v)
		last = ref[1]
		if b.Len() > limit {
			return "", fmt.Errorf("%w: more than %d bytes when templates are expanded", ErrTooLarge, limit)
		}
	}
	b.WriteString(s[last:])
	return b.String(), nil
}
