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
	err := writeLines(w, newObjectReader(c.Request.Context(), set.stream, &ct.info))
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
	info jetstream.ObjectInfo
	// sha256 is the hexadecimal SHA-256 of the lines without separators. It
	// is empty for a container that could not be read yet.
	sha256 string
}

// containerSet is all containers at one time. It does not change.
type containerSet struct {
	stream jetstream.Stream // nil without containers
	by     map[string]*container
	list   []byte // the names as a JSON array, sorted
}

func newContainerSet(str jetstream.Stream, by map[string]*container) (*containerSet, error) {
	names := slices.Sorted(maps.Keys(by))
	if names == nil {
		names = []string{}
	}
	list, err := json.Marshal(names)
	if err != nil {
		return nil, fmt.Errorf("names of containers: %w", err)
	}
	return &containerSet{stream: str, by: by, list: list}, nil
}

// agentContainers keeps the names and hashes of containers in memory, so that
// polls ask nobody. It follows the object store; the lines stay there. A hash
// is computed once for each revision of a container, and until that is done
// the revision before stays the one that agents see.
type agentContainers struct {
	svc   *Service
	set   atomic.Pointer[containerSet]
	known chan struct{} // closed when there is a first set
	first sync.Once
}

func newAgentContainers(s *Service) *agentContainers {
	return &agentContainers{svc: s, known: make(chan struct{})}
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

// publish makes a set the one that agents see.
func (a *agentContainers) publish(str jetstream.Stream, by map[string]*container) error {
	set, err := newContainerSet(str, by)
	if err != nil {
		return err
	}
	a.set.Store(set)
	a.first.Do(func() { close(a.known) })
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
	name, filter := stream.ObjectStream(stream.Containers)
	str, err := js.Stream(ctx, name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if err := a.publish(nil, nil); err != nil {
			return err
		}
		str, err = stream.Await(ctx, js, name)
	}
	if err != nil {
		return err
	}
	c, err := js.OrderedConsumer(ctx, name, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{filter}, DeliverPolicy: jetstream.DeliverLastPerSubjectPolicy,
	})
	if err != nil {
		return fmt.Errorf("consumer: %w", err)
	}
	seen := &objectInfos{by: map[string]jetstream.ObjectInfo{}, changed: make(chan struct{}, 1)}
	if info := c.CachedInfo(); info != nil && info.NumPending == 0 {
		seen.add(nil, true)
	}
	failed := make(chan error, 1)
	fail := func(err error) {
		select {
		case failed <- err:
		default:
		}
	}
	consume, err := c.Consume(func(m jetstream.Msg) {
		meta, err := m.Metadata()
		if err != nil {
			fail(err)
			return
		}
		info := &jetstream.ObjectInfo{}
		if err := json.Unmarshal(m.Data(), info); err != nil {
			a.svc.cfg.Log.Warn("description of a container is not readable", "sequence", meta.Sequence.Stream, "error", err)
			info = nil
		}
		seen.add(info, meta.NumPending == 0)
	}, jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) { fail(err) }))
	if err != nil {
		return fmt.Errorf("consume: %w", err)
	}
	defer consume.Stop()
	var retry <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-consume.Closed():
			return errors.New("the consumer was closed")
		case <-seen.changed:
		case <-retry:
		}
		infos, complete := seen.snapshot()
		if !complete {
			continue
		}
		unread, err := a.update(ctx, str, infos)
		if err != nil {
			return err
		}
		if retry = nil; unread {
			retry = time.After(containersRetry)
		}
	}
}

// update brings the set to the objects that exist. unread tells that some
// could not be read: agents go on seeing their revision before, if any.
func (a *agentContainers) update(ctx context.Context, str jetstream.Stream, infos map[string]jetstream.ObjectInfo) (unread bool, err error) {
	var before map[string]*container
	if set := a.set.Load(); set != nil {
		before = set.by
	}
	by := make(map[string]*container, len(infos))
	for name, info := range infos {
		old := before[name]
		if old != nil && old.sha256 != "" && old.info.NUID == info.NUID {
			by[name] = old
			continue
		}
		sum, err := hashLines(newObjectReader(ctx, str, &info))
		a.svc.metrics.hashed.Inc()
		switch {
		case err == nil:
			by[name] = &container{info: info, sha256: sum}
		case ctx.Err() != nil:
			return false, ctx.Err()
		default:
			a.svc.cfg.Log.Warn("container cannot be read, trying again", "container", name, "error", err)
			unread = true
			if by[name] = old; old == nil {
				by[name] = &container{info: info}
			}
		}
	}
	return unread, a.publish(str, by)
}

// objectInfos are the newest descriptions of the objects of a store.
type objectInfos struct {
	mu       sync.Mutex
	by       map[string]jetstream.ObjectInfo
	complete bool
	changed  chan struct{} // holds a value when snapshot gives something new
}

// add notes a description, nil for one that is not readable. last tells that
// no more are waiting.
func (o *objectInfos) add(info *jetstream.ObjectInfo, last bool) {
	o.mu.Lock()
	switch {
	case info == nil:
	case info.Deleted:
		delete(o.by, info.Name)
	default:
		o.by[info.Name] = *info
	}
	o.complete = o.complete || last
	o.mu.Unlock()
	select {
	case o.changed <- struct{}{}:
	default:
	}
}

// snapshot returns the descriptions, and whether they are those of all
// objects.
func (o *objectInfos) snapshot() (map[string]jetstream.ObjectInfo, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.complete {
		return nil, false
	}
	return maps.Clone(o.by), true
}
