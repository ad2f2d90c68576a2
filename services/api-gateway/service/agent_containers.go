package gateway

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/objects"
)

const (
	// containersRetry is how long after a failure the object store of
	// containers is read again.
	containersRetry = time.Second
	// containersWait bounds how long a poll waits for the first knowledge of
	// containers.
	containersWait = 5 * time.Second
)

func (s *Service) agentContainerRoutes() []route {
	return []route{
		{http.MethodGet, "/containers", s.agent(s.getContainers)},
		{http.MethodGet, "/container/:name", s.agent(s.getContainer)},
		{http.MethodGet, "/container/sha256/:name", s.agent(s.getContainerSHA256)},
	}
}

func (s *Service) getContainers(c *gin.Context, _ agent) {
	set, err := s.containers.get(c.Request.Context())
	if err != nil {
		plainError(c.Writer, err)
		return
	}
	writeText(c.Writer, set.list)
}

func (s *Service) getContainerSHA256(c *gin.Context, _ agent) {
	if _, ct := s.findContainer(c); ct != nil {
		writeText(c.Writer, []byte(ct.sha256))
	}
}

// getContainer writes a container's lines as they come from the object store.
// They are those of the revision whose hash is answered. An answer that fails
// in the middle is broken off, so that nobody takes a part for the whole.
func (s *Service) getContainer(c *gin.Context, _ agent) {
	set, ct := s.findContainer(c)
	if ct == nil {
		return
	}
	c.Writer.Header().Set("Content-Type", contentText)
	w := bufio.NewWriterSize(c.Writer, writePiece)
	err := writeLines(w, set.store.Read(c.Request.Context(), &ct.info.ObjectInfo))
	if err == nil {
		err = w.Flush()
	}
	switch {
	case err == nil:
	case c.Writer.Written():
		s.cfg.Log.Warn("container is broken off", "container", ct.info.Name, "error", err)
		panic(http.ErrAbortHandler)
	default:
		s.cfg.Log.Warn("container cannot be read", "container", ct.info.Name, "error", err)
		plainError(c.Writer, errContainerUnread)
	}
}

var errContainerUnread = fault.New(fault.Unavailable, "the container cannot be read at the moment")

// findContainer returns the container that a request names, or answers that
// there is none.
func (s *Service) findContainer(c *gin.Context) (*containerSet, *container) {
	set, err := s.containers.get(c.Request.Context())
	if err != nil {
		plainError(c.Writer, err)
		return nil, nil
	}
	ct, ok := set.by[c.Param("name")]
	switch {
	case !ok:
		plain(c.Writer, http.StatusNotFound, "Unavailable container")
		return nil, nil
	case ct.sha256 == "":
		plainError(c.Writer, errContainerUnread)
		return nil, nil
	}
	return set, ct
}

// container is one object of the store containers.
type container struct {
	info objects.Info
	// sha256 is the hexadecimal SHA-256 of the lines without separators. It
	// is empty for a container that could not be read yet.
	sha256 string
	lines  int
}

// containerSet is all containers at one time. It does not change.
type containerSet struct {
	store    *objects.Store // nil without containers
	by       map[string]*container
	revision uint64 // that of the object store
	list     []byte // the names as a JSON array, sorted
}

// names returns the names of the containers, sorted.
func (s *containerSet) names() []string { return slices.Sorted(maps.Keys(s.by)) }

// agentContainers keeps the names and hashes of containers in memory, so that
// polls ask nobody. It follows the object store; the lines stay there. A hash
// is computed once for each revision of a container, and until that is done
// the revision before stays the one that agents see.
type agentContainers struct {
	svc   *Service
	set   atomic.Pointer[containerSet]
	known chan struct{} // closed when there is a first set
	first sync.Once

	mu    sync.Mutex
	fresh chan struct{} // closed with the next set
}

func newAgentContainers(s *Service) *agentContainers {
	return &agentContainers{svc: s, known: make(chan struct{}), fresh: make(chan struct{})}
}

// get returns the containers, and waits for the first knowledge of them.
func (a *agentContainers) get(ctx context.Context) (*containerSet, error) {
	if set := a.set.Load(); set != nil {
		return set, nil
	}
	ctx, cancel := context.WithTimeout(ctx, containersWait)
	defer cancel()
	select {
	case <-a.known:
		return a.set.Load(), nil
	case <-ctx.Done():
		return nil, fault.New(fault.Unavailable, "the containers are not known yet")
	}
}

// await returns the containers once they are at least those of a revision, or
// as they are after containersWait: who has changed a container shall see agents
// get it.
func (a *agentContainers) await(ctx context.Context, revision uint64) (*containerSet, error) {
	ctx, cancel := context.WithTimeout(ctx, containersWait)
	defer cancel()
	for {
		a.mu.Lock()
		fresh := a.fresh
		a.mu.Unlock()
		set, err := a.get(ctx)
		if err != nil || set.revision >= revision {
			return set, err
		}
		select {
		case <-fresh:
		case <-ctx.Done():
			return set, nil
		}
	}
}

// publish makes a set the one that agents see.
func (a *agentContainers) publish(set *containerSet) error {
	list, err := json.Marshal(append([]string{}, set.names()...))
	if err != nil {
		return fmt.Errorf("names of containers: %w", err)
	}
	set.list = list
	a.set.Store(set)
	a.first.Do(func() { close(a.known) })
	a.mu.Lock()
	defer a.mu.Unlock()
	close(a.fresh)
	a.fresh = make(chan struct{})
	return nil
}

// run follows the object store until ctx ends.
func (a *agentContainers) run(ctx context.Context) {
	for ctx.Err() == nil {
		err := a.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		a.svc.cfg.Log.Warn("watch of the containers is lost, trying again", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(containersRetry):
		}
	}
}

// follow reads the descriptions of all objects and then each new one. A watch
// that has missed anything ends with an error, for the next one to begin with
// all of them.
func (a *agentContainers) follow(ctx context.Context) error {
	js := a.svc.cfg.Bus.JS
	store, err := objects.Open(ctx, js, stream.Containers)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if err := a.publish(&containerSet{}); err != nil {
			return err
		}
		name, _ := stream.ObjectStream(stream.Containers)
		if _, err = stream.Await(ctx, js, name); err == nil {
			store, err = objects.Open(ctx, js, stream.Containers)
		}
	}
	if err != nil {
		return err
	}
	return store.Follow(ctx, a.svc.cfg.Log, func(ctx context.Context, snap objects.Snapshot) (time.Duration, error) {
		return a.update(ctx, store, snap)
	})
}

// update brings the set to the objects that exist. If some cannot be read it is
// to be called again: agents go on seeing their revision before, if any.
func (a *agentContainers) update(ctx context.Context, store *objects.Store, snap objects.Snapshot) (again time.Duration, err error) {
	var before map[string]*container
	if set := a.set.Load(); set != nil {
		before = set.by
	}
	by := make(map[string]*container, len(snap.By))
	for name, info := range snap.By {
		old := before[name]
		if old != nil && old.sha256 != "" && old.info.NUID == info.NUID {
			by[name] = &container{info: info, sha256: old.sha256, lines: old.lines}
			continue
		}
		sum, lines, err := hashLines(store.Read(ctx, &info.ObjectInfo))
		a.svc.metrics.hashed.Inc()
		switch {
		case err == nil:
			by[name] = &container{info: info, sha256: sum, lines: lines}
		case ctx.Err() != nil:
			return 0, ctx.Err()
		default:
			a.svc.cfg.Log.Warn("container cannot be read, trying again", "container", name, "error", err)
			again = containersRetry
			if by[name] = old; old == nil {
				by[name] = &container{info: info}
			}
		}
	}
	return again, a.publish(&containerSet{store: store, by: by, revision: snap.Revision})
}
