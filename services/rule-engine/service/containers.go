package ruleengine

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/objects"
	"github.com/nightjar-edr/nightjar/services/rule-engine/internal/detect"
)

// containersRetry is how long after a failure containers are read again.
const containersRetry = time.Second

// containers are the containers that rules use. They follow the object store.
type containers struct {
	mu sync.Mutex
	// known says that all containers that were stored at the start have been
	// read.
	known    bool
	revision uint64
	by       map[string]*container
	changed  chan struct{} // closed with the next change
}

// container is the content of one container.
type container struct {
	id    string // of the content within the object store
	lines detect.Lines
	// stale says that this is not the newest content, which cannot be read.
	stale bool
}

func newContainers() *containers { return &containers{changed: make(chan struct{})} }

// set replaces all containers by those of a revision of the object store.
func (c *containers) set(revision uint64, by map[string]*container) {
	c.mu.Lock()
	defer c.mu.Unlock()
	stale := false
	for _, ct := range by {
		stale = stale || ct.stale
	}
	c.revision, c.by, c.known = revision, by, c.known || !stale
	close(c.changed)
	c.changed = make(chan struct{})
}

// read returns the containers as they are now.
func (c *containers) read() map[string]*container {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.by
}

// count returns how many containers there are, and how many different lines
// they have together.
func (c *containers) count() (containers, lines int) {
	for _, ct := range c.read() {
		containers++
		lines += len(ct.lines)
	}
	return containers, lines
}

// Ready tells whether the containers are known.
func (c *containers) Ready() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.known
}

// await waits until rules use a container as it is since a revision, or later.
// Without a name it waits until all containers are known.
func (c *containers) await(ctx context.Context, name string, revision uint64) error {
	for {
		c.mu.Lock()
		ct, changed := c.by[name], c.changed
		done := c.known && c.revision >= revision && (ct == nil || !ct.stale)
		c.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("read containers: %w", ctx.Err())
		case <-changed:
		}
	}
}

// followContainers keeps the containers that rules use as those stored, until
// ctx ends.
func (s *Service) followContainers(ctx context.Context) error {
	for ctx.Err() == nil {
		err := s.objects.Follow(ctx, s.cfg.Log, s.updateContainers)
		if ctx.Err() != nil {
			break
		}
		s.metrics.errors.WithLabelValues("containers").Inc()
		s.cfg.Log.Warn("watch of the containers is lost, trying again", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(containersRetry):
		}
	}
	return nil
}

// updateContainers brings what rules use to the objects that exist. Whatever
// has changed, rules are compiled once. A container that cannot be read stays as
// it was and is tried again.
func (s *Service) updateContainers(ctx context.Context, snap objects.Snapshot) (again time.Duration, err error) {
	before := s.containers.read()
	by := make(map[string]*container, len(snap.By))
	lines := make(map[string]detect.Lines, len(snap.By))
	changed := len(before) != len(snap.By)
	for name, info := range snap.By {
		ct := before[name]
		if ct == nil || ct.id != info.NUID || ct.stale {
			ct, err = s.readContainer(ctx, info, ct)
			switch {
			case ctx.Err() != nil:
				return 0, ctx.Err()
			case err != nil:
				again = containersRetry
				s.metrics.errors.WithLabelValues("containers").Inc()
				s.cfg.Log.Warn("container cannot be read, trying again", "container", name, "error", err)
			}
			changed = true
		}
		by[name] = ct
		if ct.lines != nil {
			lines[name] = ct.lines
		}
	}
	if changed {
		_ = s.rules.setContainers(lines) // logged, and told by Ready
	}
	s.containers.set(snap.Revision, by)
	return again, nil
}

// readContainer reads an object. With an error it returns the container as it
// was before, marked as stale.
func (s *Service) readContainer(ctx context.Context, info objects.Info, before *container) (*container, error) {
	lines, err := readLines(s.objects.Read(ctx, &info.ObjectInfo))
	if err == nil {
		return &container{id: info.NUID, lines: lines}, nil
	}
	ct := &container{stale: true}
	if before != nil {
		ct.id, ct.lines = before.id, before.lines
	}
	return ct, err
}

// readLines reads lines as message.DecodeContainer does.
func readLines(r io.Reader) (detect.Lines, error) {
	in, lines := bufio.NewReaderSize(r, 64<<10), detect.Lines{}
	for {
		line, err := in.ReadBytes('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if len(line) > 0 {
			lines.Add(string(bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))))
		}
		if err != nil {
			return lines, nil
		}
	}
}
