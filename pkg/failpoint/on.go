//go:build failpoint

package failpoint

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Enabled tells whether points can be armed in this build.
const Enabled = true

// Variable is the variable of the environment that arms points.
const Variable = "NIGHTJAR_FAILPOINTS"

// armed are the points that act, by name. It does not change.
var armed = func() map[string]*action {
	m, err := parse(os.Getenv(Variable))
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", Variable, err)
		os.Exit(2)
	}
	return m
}()

// Hit acts when the point is armed and this is its hit.
func Hit(p Point) {
	if len(armed) > 0 {
		hit(string(p))
	}
}

// HitIn is Hit for a point that stands in code that several parts share.
func HitIn(p Point, name string) {
	if len(armed) > 0 {
		hit(part(p, name))
	}
}

func hit(name string) {
	if a := armed[name]; a != nil && a.hits.Add(1) == a.at {
		fmt.Fprintf(os.Stderr, "failpoint %s: %s\n", name, a.what)
		a.do(name)
	}
}

// action is what happens at hit number at.
type action struct {
	what string
	at   int64
	hits atomic.Int64
	do   func(name string)
}

// parse reads the variable: name=action[@hit], separated by commas.
func parse(spec string) (map[string]*action, error) {
	armed := map[string]*action{}
	known := List()
	for _, s := range strings.Split(spec, ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		name, what, _ := strings.Cut(s, "=")
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("no failpoint %q", name)
		}
		a := &action{what: what, at: 1}
		what, at, counted := strings.Cut(what, "@")
		if counted {
			n, err := strconv.ParseInt(at, 10, 64)
			if err != nil || n < 1 {
				return nil, fmt.Errorf("failpoint %s: hit %q is not a number from 1 on", name, at)
			}
			a.at = n
		}
		var err error
		if a.do, err = doing(what); err != nil {
			return nil, fmt.Errorf("failpoint %s: %w", name, err)
		}
		armed[name] = a
	}
	return armed, nil
}

func doing(what string) (func(name string), error) {
	switch what {
	case "kill":
		return kill, nil
	case "note":
		return func(string) {}, nil
	case "exit":
		return func(string) { os.Exit(3) }, nil
	case "panic":
		return func(name string) { panic("failpoint " + name) }, nil
	}
	if d, ok := strings.CutPrefix(what, "sleep("); ok {
		d, err := time.ParseDuration(strings.TrimSuffix(d, ")"))
		if err != nil {
			return nil, fmt.Errorf("action %q: %w", what, err)
		}
		return func(string) { time.Sleep(d) }, nil
	}
	return nil, fmt.Errorf("action %q: want kill, exit, panic, note or sleep(DURATION)", what)
}

// kill ends the process as kill -9 does, and does not return.
func kill(name string) {
	p, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = p.Kill()
	}
	if err != nil {
		panic(fmt.Sprintf("failpoint %s: kill: %v", name, err))
	}
	select {}
}
