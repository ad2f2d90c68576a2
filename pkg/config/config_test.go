package config_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/config"
)

func file(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "nightjar.yaml")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestPrecedence(t *testing.T) {
	const name = "drop-dir"
	for _, tc := range []struct {
		name                   string
		flag, environment, set bool
		want                   string
	}{
		{"default", false, false, false, "default"},
		{"file", false, false, true, "of the file"},
		{"environment", false, true, false, "of the environment"},
		{"environment beats file", false, true, true, "of the environment"},
		{"flag beats environment", true, true, false, "of the flag"},
		{"flag beats file", true, false, true, "of the flag"},
		{"flag beats both", true, true, true, "of the flag"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fs := config.NewFlagSet("prog", "Intro.", io.Discard)
			got := fs.String(name, "default", "usage")
			var args []string
			if tc.flag {
				args = append(args, "--"+name, "of the flag")
			}
			if tc.environment {
				t.Setenv("NIGHTJAR_DROP_DIR", "of the environment")
			}
			if tc.set {
				args = append(args, "--config", file(t, name+": of the file\n"))
			}
			if err := config.Parse(fs, args); err != nil {
				t.Fatal(err)
			}
			if *got != tc.want {
				t.Errorf("got %q, want %q", *got, tc.want)
			}
		})
	}
}

// The file is named in the environment, and its values are what they are on
// the command line.
func TestFile(t *testing.T) {
	t.Setenv("NIGHTJAR_CONFIG", file(t, "# comment\nnats-addr: off\nadmin-key:\nretention-events: 30d\nmax-store: 20GiB\nsync: 10s\nworkers: 8\nquiet: true\nserver-key: 0123\n"))
	fs := config.NewFlagSet("prog", "Intro.", io.Discard)
	var (
		nats      = fs.String("nats-addr", "127.0.0.1:4222", "")
		admin     = fs.String("admin-key", "unset", "")
		key       = fs.String("server-key", "", "")
		workers   = fs.Int("workers", 1, "")
		quiet     = fs.Bool("quiet", false, "")
		retention config.Duration
		store     config.Bytes
		sync      config.Sync
	)
	fs.Var(&retention, "retention-events", "")
	fs.Var(&store, "max-store", "")
	fs.Var(&sync, "sync", "")
	if err := config.Parse(fs, nil); err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(*nats, "|", *admin, "|", *key, "|", *workers, "|", *quiet, "|", time.Duration(retention), "|", int64(store), "|", sync)
	if want := fmt.Sprint("off||0123|8|true|720h0m0s|", int64(20<<30), "|{false 10s}"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestErrorsNameTheCause(t *testing.T) {
	for _, tc := range []struct {
		name, file, want string
		args             []string
		env              map[string]string
	}{
		{name: "unknown flag", args: []string{"--no-such-flag", "1"}, want: "no-such-flag"},
		{name: "unknown key", file: "no-such-key: 1\n", want: `"no-such-key"`},
		{name: "bad flag", args: []string{"--retention", "soon"}, want: "retention"},
		{name: "bad variable", env: map[string]string{"NIGHTJAR_RETENTION": "soon"}, want: "NIGHTJAR_RETENTION"},
		{name: "bad key", file: "retention: soon\n", want: `"retention"`},
		{name: "checked flag", args: []string{"--workers", "0"}, want: "want at least 1"},
		{name: "checked variable", env: map[string]string{"NIGHTJAR_WORKERS": "0"}, want: "want at least 1"},
		{name: "checked key", file: "workers: 0\n", want: "want at least 1"},
		{name: "not a number", args: []string{"--workers", "many"}, want: "many"},
		{name: "argument", args: []string{"--workers", "1", "start"}, want: `"start"`},
		{name: "list", file: "retention: [1d, 2d]\n", want: "line 1"},
		{name: "key twice", file: "retention: 1d\nretention: 2d\n", want: `"retention" already set`},
		{name: "no YAML", file: "retention: \"1d\n", want: "config file"},
		{name: "missing file", args: []string{"--config", "no/such/file"}, want: "no/such/file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fs := config.NewFlagSet("prog", "Intro.", io.Discard)
			var retention config.Duration
			fs.Var(&retention, "retention", "")
			workers := fs.Int("workers", 1, "")
			config.Check(fs, "workers", func() error {
				if *workers < 1 {
					return errors.New("want at least 1")
				}
				return nil
			})
			for k, v := range tc.env {
				t.Setenv(k, v)
			}
			args := tc.args
			if tc.file != "" {
				args = append(args, "--config", file(t, tc.file))
			}
			if err := config.Parse(fs, args); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %s in it", err, tc.want)
			}
		})
	}
}

// A flag that is checked is otherwise as it was.
func TestCheckedFlag(t *testing.T) {
	fs := config.NewFlagSet("prog", "Intro.", io.Discard)
	quiet, name, calls := fs.Bool("quiet", false, ""), fs.String("name", "", ""), 0
	for _, flag := range []string{"quiet", "name"} {
		config.Check(fs, flag, func() error { calls++; return nil })
	}
	if err := config.Parse(fs, []string{"--quiet", "--name", "a"}); err != nil {
		t.Fatal(err)
	}
	if !*quiet || *name != "a" || calls != 2 {
		t.Errorf("quiet %v, name %q, checked %d times", *quiet, *name, calls)
	}
}

// A check may look at flags that come later.
func TestCheckAfterAllFlags(t *testing.T) {
	for _, tc := range []struct {
		ordinal string
		ok      bool
	}{{"1", true}, {"-1", false}} {
		fs := config.NewFlagSet("prog", "Intro.", io.Discard)
		shards, ordinal := fs.Int("shards", 1, ""), fs.Int("ordinal", -1, "")
		config.Check(fs, "shards", func() error {
			if *shards > 1 && *ordinal < 0 {
				return errors.New("want an ordinal")
			}
			return nil
		})
		if err := config.Parse(fs, []string{"--shards", "2", "--ordinal", tc.ordinal}); (err == nil) != tc.ok {
			t.Errorf("ordinal %s: %v", tc.ordinal, err)
		}
	}
}

func TestCheckAddress(t *testing.T) {
	for addr, ok := range map[string]bool{
		":8080": true, "127.0.0.1:0": true, "[::1]:65535": true, "host.example:1": true,
		"": false, "8080": false, "127.0.0.1": false, ":http": false, ":65536": false, "::1:80": false, ":-1": false,
	} {
		if err := config.CheckAddress(addr); (err == nil) != ok {
			t.Errorf("%q: %v", addr, err)
		}
	}
}

func TestHelp(t *testing.T) {
	var out bytes.Buffer
	fs := config.NewFlagSet("prog", "prog does its work.", &out)
	fs.String("admin-addr", "127.0.0.1:8001", "address of the admin API")
	fs.Int("ordinal", -1, "number of this replica\n-1: from the host name")
	sync := config.Sync{Always: true}
	fs.Var(&sync, "sync", "when to sync")
	fs.String("drop-dir", "", "folder of files")
	if err := config.Parse(fs, []string{"--help"}); !errors.Is(err, config.ErrHelp) {
		t.Fatalf("got %v, want ErrHelp", err)
	}
	for _, want := range []string{
		"prog does its work.\n", "Usage: prog [flags]\n", "NIGHTJAR_<NAME>",
		"  --admin-addr\n        address of the admin API (default 127.0.0.1:8001)\n",
		"  --ordinal\n        number of this replica\n        -1: from the host name (default -1)\n",
		"  --sync\n        when to sync (default always)\n",
		"  --drop-dir\n        folder of files\n",
		"  --config\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

// values tests a flag value: what is read, how it is written, and that this is
// read as the same.
func values[T comparable](t *testing.T, read func(s string) (flag.Value, func() T, error), good map[string]T, written map[string]string, bad []string) {
	t.Helper()
	for in, want := range good {
		v, get, err := read(in)
		if err != nil || get() != want {
			t.Errorf("%q is %v, %v; want %v", in, get(), err, want)
			continue
		}
		if s, ok := written[in]; ok && v.String() != s {
			t.Errorf("%q is written %q, want %q", in, v.String(), s)
		}
		if _, again, err := read(v.String()); err != nil || again() != want {
			t.Errorf("%q is written %q, which is %v, %v", in, v.String(), again(), err)
		}
	}
	for _, in := range bad {
		if _, get, err := read(in); err == nil {
			t.Errorf("%q is %v, want an error", in, get())
		}
	}
}

func TestDuration(t *testing.T) {
	const day = config.Duration(24 * time.Hour)
	values(t, func(s string) (flag.Value, func() config.Duration, error) {
		d := new(config.Duration)
		err := d.Set(s)
		return d, func() config.Duration { return *d }, err
	}, map[string]config.Duration{
		"0": 0, "0d": 0, "30d": 30 * day, "24h": day, "12h": day / 2, "1h30m": config.Duration(90 * time.Minute),
		"36h": day + day/2, "100000d": 100_000 * day, "1ns": 1,
	}, map[string]string{"24h": "1d", "720h": "30d", "36h": "36h0m0s", "0": "0s"},
		[]string{"", "d", "30", "-1d", "-1h", "1.5d", "100001d", "30dd", "1d12h", "soon", "30d ", " 30d", "30;9d", "9999999999999999999d"})
}

func TestBytes(t *testing.T) {
	values(t, func(s string) (flag.Value, func() config.Bytes, error) {
		b := new(config.Bytes)
		err := b.Set(s)
		return b, func() config.Bytes { return *b }, err
	}, map[string]config.Bytes{
		"none": 0, "": 0, "1": 1, "1024": 1024, "1K": 1 << 10, "1KiB": 1 << 10, "1KB": 1 << 10, "20GiB": 20 << 30, "20 GiB": 20 << 30,
		"2G": 2 << 30, "3MiB": 3 << 20, "1.5GiB": 3 << 29, "2TiB": 2 << 40, "9007199254740993": 9007199254740993,
	}, map[string]string{"none": "none", "1KiB": "1024"},
		[]string{"0", "-1", "-1GiB", "GiB", "1PiB", "1e30", "many", "20GiBs", "1 2", "NaN", "Inf", "infGiB", "0.5", "5000000TiB"})
}

func TestSync(t *testing.T) {
	values(t, func(s string) (flag.Value, func() config.Sync, error) {
		v := new(config.Sync)
		err := v.Set(s)
		return v, func() config.Sync { return *v }, err
	}, map[string]config.Sync{
		"always": {Always: true}, "10s": {Interval: 10 * time.Second}, "2m": {Interval: 2 * time.Minute},
	}, map[string]string{"always": "always", "2m": "2m0s"},
		[]string{"", "0", "0s", "-1s", "never", "10", "Always"})
}
