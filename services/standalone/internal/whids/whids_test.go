package whids

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "manager.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRead(t *testing.T) {
	path := write(t, `
rules-dir = "database/rules"
dump-dir = 7
containers-dir = "/srv/containers"
unknown = { a = 1 }

[admin-api]
  host = "localhost"
  port = 1520

  [[admin-api.users]]
    identifier = "first"
    key = "key of first"

  [[admin-api.users]]
    key = "key of second"
    identifier = "second"
    group = ["x"]

[endpoint-api]
  host = "0.0.0.0"
  server-key = "the server's"

  [[endpoint-api.endpoints]]
    uuid = "ffffffff-0000-0000-0000-000000000001"
    key = "key 1"

  [[endpoint-api.endpoints]]
    uuid = "00000000-0000-0000-0000-000000000002"
    key = "key 2"

[logging]
  root = "data"
`)
	want := &Config{
		Endpoints:     []Endpoint{{"ffffffff-0000-0000-0000-000000000001", "key 1"}, {"00000000-0000-0000-0000-000000000002", "key 2"}},
		Operators:     []Operator{{"first", "key of first"}, {"second", "key of second"}},
		ServerKey:     "the server's",
		RulesDir:      filepath.Join(filepath.Dir(path), "database", "rules"),
		ContainersDir: "/srv/containers",
	}
	got, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v, want %+v", got, want)
	}
}

func TestReadForms(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want Config
	}{
		"nothing to take over": {"[admin-api]\nport = 1520\n", Config{}},
		"empty arrays":         {"[admin-api]\nusers = []\n[endpoint-api]\nendpoints = []\n", Config{}},
		"inline tables": {`endpoint-api = { endpoints = [{uuid = "u", key = "k"}, {uuid = "v", key = "l"}], server-key = "" }`,
			Config{Endpoints: []Endpoint{{"u", "k"}, {"v", "l"}}}},
		"windows line ends": {"[admin-api]\r\n[[admin-api.users]]\r\nidentifier = \"a\"\r\nkey = \"k\"\r\n", Config{Operators: []Operator{{"a", "k"}}}},
		"byte order mark":   {"\ufeff[endpoint-api]\nserver-key = \"k\"\n", Config{ServerKey: "k"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Read(write(t, c.text))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(*got, c.want) {
				t.Errorf("read %+v, want %+v", *got, c.want)
			}
		})
	}
}

func TestReadRefuses(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"no TOML":              {"[endpoint-api\n", "line 1, column 2: no valid TOML"},
		"quotes are missing":   {"[endpoint-api]\nserver-key = secret\n", "line 2, column 14: no valid TOML"},
		"no sign":              {"[endpoint-api]\nserver-key \"secret\"\n", "no valid TOML"},
		"another's file":       {"rules-dir = \"r\"\n[forwarder]\nhost = \"h\"\n", "not the configuration of a WHIDS manager"},
		"no table":             {"admin-api = 1\n", "line 1: admin-api must be a table"},
		"array of tables":      {"[[endpoint-api]]\n", "line 1: endpoint-api must be a table"},
		"folder is no string":  {"rules-dir = 5\n[admin-api]\n", "line 1: rules-dir must be a string"},
		"server key":           {"[endpoint-api]\nserver-key = true\n", "[endpoint-api]: line 2: server-key must be a string"},
		"endpoints":            {"[endpoint-api]\nendpoints = [\"u\"]\n", "[[endpoint-api.endpoints]]: line 2: endpoints must be an array of tables"},
		"endpoint without key": {"[endpoint-api]\n[[endpoint-api.endpoints]]\nuuid = \"u\"\n", "[[endpoint-api.endpoints]]: line 2: key: missing"},
		"endpoint no string":   {"[endpoint-api]\n[[endpoint-api.endpoints]]\nuuid = \"u\"\nkey = 4711\n", "[[endpoint-api.endpoints]]: line 4: key must be a string"},
		"operator":             {"[admin-api]\n[[admin-api.users]]\nkey = \"secret\"\n", "[[admin-api.users]]: line 2: identifier: missing"},
	} {
		t.Run(name, func(t *testing.T) {
			path := write(t, c.text)
			_, err := Read(path)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), path+": ") {
				t.Fatalf("error %v, want %q", err, c.want)
			}
			for _, secret := range []string{"secret", "4711"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("%v shows a value", err)
				}
			}
		})
	}
	t.Run("missing", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "none.toml")
		if _, err := Read(path); err == nil || err.Error() != path+": no such file or directory" {
			t.Errorf("error %v", err)
		}
	})
	t.Run("folder", func(t *testing.T) {
		if _, err := Read(t.TempDir()); err == nil || !strings.HasSuffix(err.Error(), ": not a file") {
			t.Errorf("error %v", err)
		}
	})
}

// What is taken over is what stands in the file: nothing is left out, and no
// endpoint or operator is without a part of its credentials.
func FuzzParse(f *testing.F) {
	f.Add([]byte("rules-dir = 'r'\n[admin-api]\n[[admin-api.users]]\nidentifier = \"a\"\nkey = \"k\"\n[[admin-api.users]]\nidentifier = \"b\"\nkey = \"l\"\n"))
	f.Add([]byte("containers-dir = '''c'''\n[endpoint-api]\nserver-key = 's'\n[[endpoint-api.endpoints]]\nuuid = 'u'\nkey = 'k'\n[[endpoint-api.endpoints]]\nuuid = 'u'\nkey = ''\n"))
	f.Add([]byte("endpoint-api = { endpoints = [{uuid = \"u\", key = \"k\"}] }"))
	f.Add([]byte("endpoint-api.server-key = \"\\u0061\"\nadmin-api.users = []\n"))
	f.Add([]byte("a = 1979-05-27T07:32:00Z\n[a.b]\n"))
	text := func(table any, name string) string {
		m, _ := table.(map[string]any)
		s, _ := m[name].(string)
		return s
	}
	entries := func(table any, name string) []any {
		m, _ := table.(map[string]any)
		list, _ := m[name].([]any)
		return list
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := parse(data)
		if err != nil {
			if got != nil {
				t.Fatalf("%+v beside the error %v", got, err)
			}
			return
		}
		tree, err := toml.LoadBytes(data)
		if err != nil {
			t.Fatalf("accepted, but it is no TOML: %v", err)
		}
		root := tree.ToMap()
		agents, admin := root["endpoint-api"], root["admin-api"]
		want := &Config{RulesDir: text(root, "rules-dir"), ContainersDir: text(root, "containers-dir"), ServerKey: text(agents, "server-key")}
		for _, e := range entries(agents, "endpoints") {
			want.Endpoints = append(want.Endpoints, Endpoint{text(e, "uuid"), text(e, "key")})
		}
		for _, e := range entries(admin, "users") {
			want.Operators = append(want.Operators, Operator{text(e, "identifier"), text(e, "key")})
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("took over %+v of %+v", got, want)
		}
		if slices.ContainsFunc(got.Endpoints, func(e Endpoint) bool { return e.UUID == "" || e.Key == "" }) ||
			slices.ContainsFunc(got.Operators, func(o Operator) bool { return o.Identifier == "" || o.Key == "" }) {
			t.Fatalf("accepted with a part missing: %+v", got)
		}
	})
}
