package natstest

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

// UnusableFlags runs a service's program where no NATS server answers, once
// for each list of arguments, and demands that it ends with
// lifecycle.ExitUsage and names the first flag of the list.
func UnusableFlags(t *testing.T, flags func(*flag.FlagSet) func(lifecycle.Env) (lifecycle.Component, error), lists ...[]string) {
	t.Helper()
	p := lifecycle.Program{Name: "service", Intro: "A service.", Flags: flags}
	for _, args := range lists {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			stderr, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = stderr.Close() }()
			code := p.Main(append([]string{"--nats-url", "nats://127.0.0.1:1"}, args...), stderr)
			text, err := os.ReadFile(stderr.Name())
			if err != nil {
				t.Fatal(err)
			}
			if name := strings.TrimLeft(args[0], "-"); code != lifecycle.ExitUsage || !strings.Contains(string(text), "-"+name) {
				t.Errorf("exit code %d, %s; want %d and the flag's name", code, text, lifecycle.ExitUsage)
			}
		})
	}
}
