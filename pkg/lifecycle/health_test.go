package lifecycle_test

import (
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/ops"
)

// The command health finds the running program by the same flags and says how
// it is, without NATS.
func TestHealthCommand(t *testing.T) {
	o, err := ops.Listen("127.0.0.1:0", lifecycle.Discard())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); o.Serve() }()
	defer func() { o.Close(); <-done }()
	var state error
	o.Check("tiny", func() error { return state })
	check := func(code int, want string, args ...string) {
		t.Helper()
		got, out := program(t, mustNotBuild(t), append([]string{lifecycle.HealthCommand}, args...)...)
		if got != code || !strings.Contains(out, want) || want == "" && out != "" {
			t.Errorf("%q: exit code %d, want %d and %q in\n%s", args, got, code, want, out)
		}
	}
	check(lifecycle.ExitOK, "", "--ops-addr", o.Addr(), "--nats-url", nowhere)
	t.Setenv("NIGHTJAR_OPS_ADDR", o.Addr())
	check(lifecycle.ExitOK, "")
	state = errors.New("view is 12 behind")
	check(lifecycle.ExitFailed, "tiny: not ready: {\"tiny\":\"view is 12 behind\"}\n")
	check(lifecycle.ExitUsage, "colour", "--colour", "blue")
	check(lifecycle.ExitOK, "tiny health, with the same flags", "--help")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	check(lifecycle.ExitFailed, "tiny: no answer: ", "--ops-addr", ln.Addr().String())
}
