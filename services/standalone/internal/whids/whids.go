package whids

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"github.com/pelletier/go-toml"
)

// maxFile bounds a configuration file in bytes.
const maxFile = 64 << 20

// Config is what a manager's configuration file says. The zero value of a
// setting means that the file does not have it.
type Config struct {
	// Endpoints and Operators are in the order of the file.
	Endpoints []Endpoint
	Operators []Operator
	// ServerKey is what agents are answered on GET /key.
	ServerKey string
	// RulesDir and ContainersDir are folders. A relative one is relative to
	// the folder of the file.
	RulesDir, ContainersDir string
}

// Endpoint is an endpoint with the credentials of its agent.
type Endpoint struct{ UUID, Key string }

// Operator is a user of the admin API.
type Operator struct{ Identifier, Key string }

var (
	errForeign = errors.New("neither [admin-api] nor [endpoint-api] is in it, so it is not the configuration of a WHIDS manager")
	errMissing = errors.New("missing")
	errSyntax  = errors.New("no valid TOML")
)

// Read reads a configuration file. Members that it does not need may be
// anything; those that it needs must be of the right type, and an endpoint or
// an operator must be complete. An error names the line and never shows a
// value.
func Read(path string) (*Config, error) {
	c, err := read(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

func read(path string) (*Config, error) {
	data, err := content(path)
	if err != nil {
		return nil, err
	}
	c, err := parse(data)
	if err != nil {
		return nil, err
	}
	beside(path, &c.RulesDir, &c.ContainersDir)
	return c, nil
}

// Folders returns the folders of a configuration file in which a manager
// keeps its logs and its dumps, empty where the file does not have them. A
// relative one is relative to the folder of the file.
func Folders(path string) (logs, dumps string, err error) {
	if logs, dumps, err = folders(path); err != nil {
		return "", "", fmt.Errorf("%s: %w", path, err)
	}
	beside(path, &logs, &dumps)
	return logs, dumps, nil
}

func folders(path string) (logs, dumps string, err error) {
	data, err := content(path)
	if err != nil {
		return "", "", err
	}
	root, err := load(data)
	if err != nil {
		return "", "", err
	}
	if dumps, err = text(root, "dump-dir"); err != nil {
		return "", "", err
	}
	logging, err := table(root, "logging")
	if err != nil {
		return "", "", err
	}
	if logs, err = text(logging, "root"); err != nil {
		return "", "", fmt.Errorf("[logging]: %w", err)
	}
	return logs, dumps, nil
}

// content returns what stands in a configuration file.
func content(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, withoutPath(err)
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a file")
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("%d bytes, at most %d are allowed", info.Size(), maxFile)
	}
	data, err := os.ReadFile(path)
	return data, withoutPath(err)
}

// beside makes relative folders relative to the folder of the file at path.
func beside(path string, dirs ...*string) {
	for _, dir := range dirs {
		if *dir != "" && !filepath.IsAbs(*dir) {
			*dir = filepath.Join(filepath.Dir(path), *dir)
		}
	}
}

// withoutPath takes the path off an error whose reader is told it already.
func withoutPath(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

func parse(data []byte) (_ *Config, err error) {
	root, err := load(data)
	if err != nil {
		return nil, err
	}
	admin, err := table(root, "admin-api")
	if err != nil {
		return nil, err
	}
	agents, err := table(root, "endpoint-api")
	if err != nil {
		return nil, err
	}
	if admin == nil && agents == nil {
		return nil, errForeign
	}
	c := &Config{}
	for name, to := range map[string]*string{"rules-dir": &c.RulesDir, "containers-dir": &c.ContainersDir} {
		if *to, err = text(root, name); err != nil {
			return nil, err
		}
	}
	if c.ServerKey, err = text(agents, "server-key"); err != nil {
		return nil, fmt.Errorf("[endpoint-api]: %w", err)
	}
	err = each(agents, "endpoints", func(t *toml.Tree) error {
		var e Endpoint
		if err := complete(t, "uuid", &e.UUID, "key", &e.Key); err != nil {
			return err
		}
		c.Endpoints = append(c.Endpoints, e)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("[[endpoint-api.endpoints]]: %w", err)
	}
	err = each(admin, "users", func(t *toml.Tree) error {
		var o Operator
		if err := complete(t, "identifier", &o.Identifier, "key", &o.Key); err != nil {
			return err
		}
		c.Operators = append(c.Operators, o)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("[[admin-api.users]]: %w", err)
	}
	return c, nil
}

// load parses TOML. Of an error it keeps only the place, as the parser's text
// may quote a key. The parser answers some malformed input with a panic.
func load(data []byte) (root *toml.Tree, err error) {
	defer func() {
		if r := recover(); r != nil {
			root, err = nil, errSyntax
		}
	}()
	if root, err = toml.LoadBytes(data); err == nil {
		return root, nil
	}
	if place := placeOfError.FindStringSubmatch(err.Error()); place != nil {
		return nil, fmt.Errorf("line %s, column %s: %w", place[1], place[2], errSyntax)
	}
	return nil, errSyntax
}

var placeOfError = regexp.MustCompile(`^\((\d+), (\d+)\): `)

// table returns a table within another one, nil when it is not there.
func table(t *toml.Tree, name string) (*toml.Tree, error) {
	switch v := t.GetPath([]string{name}).(type) {
	case nil:
		return nil, nil
	case *toml.Tree:
		return v, nil
	default:
		return nil, wrong(t, name, "a table")
	}
}

// text returns a string within a table, empty when it is not there.
func text(t *toml.Tree, name string) (string, error) {
	if t == nil {
		return "", nil
	}
	switch v := t.GetPath([]string{name}).(type) {
	case nil:
		return "", nil
	case string:
		return v, nil
	default:
		return "", wrong(t, name, "a string")
	}
}

// each calls f with every table of an array of tables.
func each(t *toml.Tree, name string, f func(*toml.Tree) error) error {
	if t == nil {
		return nil
	}
	switch v := t.GetPath([]string{name}).(type) {
	case nil:
		return nil
	case []any:
		if len(v) == 0 {
			return nil
		}
		return wrong(t, name, "an array of tables")
	case []*toml.Tree:
		for _, entry := range v {
			if err := f(entry); err != nil {
				return err
			}
		}
		return nil
	default:
		return wrong(t, name, "an array of tables")
	}
}

// complete reads two strings of a table that must both be there.
func complete(t *toml.Tree, name1 string, to1 *string, name2 string, to2 *string) (err error) {
	if *to1, err = text(t, name1); err != nil {
		return err
	}
	if *to2, err = text(t, name2); err != nil {
		return err
	}
	for name, value := range map[string]string{name1: *to1, name2: *to2} {
		if value == "" {
			return fmt.Errorf("line %d: %s: %w", t.Position().Line, name, errMissing)
		}
	}
	return nil
}

func wrong(t *toml.Tree, name, want string) error {
	return fmt.Errorf("line %d: %s must be %s", t.GetPositionPath([]string{name}).Line, name, want)
}
