//go:build chaos || powerloss

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// chaosContainers is an operator who changes containers.
type chaosContainers struct {
	// lines are those of each container that exists.
	lines   map[string][]containerLine
	made    int
	changes int
}

// containerLine is a line that stands once, or up to so many times more as
// requests to add it were not answered.
type containerLine struct {
	text    string
	unknown int
}

func (o *chaosContainers) step(c *chaos, r *rand.Rand) {
	name := fmt.Sprintf("chaos%d", r.IntN(3))
	path := "/containers/" + name
	o.changes++
	fresh := func() string { o.made++; return fmt.Sprintf("line %d", o.made) }
	switch r.IntN(6) {
	case 0, 1:
		var lines []containerLine
		var body strings.Builder
		for range 1 + r.IntN(2000) {
			l := fresh()
			lines = append(lines, containerLine{text: l})
			fmt.Fprintln(&body, l)
		}
		c.again("PUT container", func(p *proc) error {
			_, _, err := p.told(http.MethodPut, path, body.String())
			return err
		})
		o.lines[name] = lines
	case 2, 3, 4:
		l := containerLine{text: fresh()}
		l.unknown = c.again("POST container", func(p *proc) error {
			_, _, err := p.told(http.MethodPost, path, l.text+"\n")
			return err
		})
		o.lines[name] = append(o.lines[name], l)
	default:
		_, exists := o.lines[name]
		var failure string
		unknown := c.again("DELETE container", func(p *proc) (err error) {
			_, failure, err = p.told(http.MethodDelete, path, "", "Unknown container")
			return err
		})
		if exists && failure != "" && unknown == 0 {
			c.t.Errorf("DELETE container %s: %s", name, failure)
		}
		delete(o.lines, name)
	}
}

// compare demands that all containers hold what was acknowledged.
func (o *chaosContainers) compare(t *testing.T, p *proc) {
	t.Helper()
	for n := range 3 {
		name := fmt.Sprintf("chaos%d", n)
		a, err := p.ask(http.MethodGet, "/containers/"+name, "")
		if err != nil {
			t.Fatal(err)
		}
		want, exists := o.lines[name]
		if exists != (a.Error == "") {
			t.Errorf("container %s: error %q, exists %v", name, a.Error, exists)
		}
		var got []string
		if a.Error == "" {
			if err := json.Unmarshal(a.Data, &got); err != nil {
				t.Fatal(err)
			}
		}
		for _, l := range want {
			times := 0
			for times < len(got) && got[times] == l.text {
				times++
			}
			if times < 1 || times > 1+l.unknown {
				t.Errorf("container %s: %q stands %d times, want 1 and up to %d more, before %.200q", name, l.text, times, l.unknown, got)
				break
			}
			got = got[times:]
		}
		if len(got) > 0 && !t.Failed() {
			t.Errorf("container %s has lines that were never added, or were replaced: %.200q", name, got)
		}
	}
}

// chaosHistory is an operator who imports the history of a WHIDS manager, day
// after day.
type chaosHistory struct {
	*chaosAgent
	old  *oldManager
	url  string
	days int
}

// newChaosHistory lets the import reach whichever manager runs at one address.
func newChaosHistory(c *chaos, e endpoint) *chaosHistory {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go c.forward(conn)
		}
	}()
	return &chaosHistory{chaosAgent: newChaosAgent(e), old: newOldManager(c.t), url: "http://" + ln.Addr().String()}
}

// forward connects a client with the admin API of the manager that runs.
func (c *chaos) forward(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	u, err := url.Parse(c.now.Load().admin)
	if err != nil {
		return
	}
	manager, err := net.DialTimeout("tcp", u.Host, time.Second)
	if err != nil {
		return
	}
	defer func() { _ = manager.Close() }()
	go func() {
		_, _ = io.Copy(manager, conn)
		_ = manager.Close()
	}()
	_, _ = io.Copy(conn, manager)
}

// importPatience is how long an import is waited for. It waits longer and longer
// for a manager that is away, so it is broken off and repeated.
const importPatience = 10 * time.Second

// step imports one more day, again and again until it succeeds.
func (o *chaosHistory) step(c *chaos, r *rand.Rand) {
	var lines []string
	for range 50 + r.IntN(200) {
		if l := o.line(r); !strings.HasPrefix(string(l), notJSON) {
			lines = append(lines, string(l))
		}
	}
	o.days++
	day := time.Date(2016, 1, 1, 0, 0, 0, 0, time.UTC).AddDate(0, 0, o.days) // older than any event, which --since would leave out
	o.old.put("logs/"+o.e.UUID+"/"+day.Format(time.DateOnly)+"/logs.gz", zipped(c.t, lines...))
	c.again("import-history", func(*proc) error {
		ctx, cancel := context.WithTimeout(c.t.Context(), importPatience)
		defer cancel()
		cmd := exec.CommandContext(ctx, binary, "import-history", "--from", o.old.file, "--dumps-dir", "off", "--url", o.url, "--admin-key", adminKey, "--since", day.AddDate(0, 0, -1).Format(time.DateOnly))
		out, err := cmd.CombinedOutput()
		if err != nil {
			return errors.Join(err, errors.New(string(out)))
		}
		return nil
	})
}
