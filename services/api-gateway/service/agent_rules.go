package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
)

const (
	// rulesRefresh is how often the rules are asked for when nothing says
	// that they have changed. When asking has failed it is tried again after
	// rulesRetry, then after twice that, and so on up to rulesRetryMax.
	rulesRefresh  = time.Minute
	rulesRetry    = 20 * time.Millisecond
	rulesRetryMax = time.Second
	// rulesWait bounds how long a change of rules, or the first poll, waits
	// for the rules of agents.
	rulesWait = 5 * time.Second
	// maxRulesText bounds the rules' text that is taken from the rule-engine.
	maxRulesText = 256 << 20
)

func (s *Service) agentRuleRoutes() []route {
	return []route{
		{http.MethodGet, "/rules", s.agent(func(c *gin.Context, a agent) {
			s.serveRules(c, a, func(t *rulesText) []byte { return t.text })
		})},
		{http.MethodGet, "/rules/sha256", s.agent(func(c *gin.Context, a agent) {
			s.serveRules(c, a, func(t *rulesText) []byte { return []byte(t.sha256) })
		})},
	}
}

func (s *Service) serveRules(c *gin.Context, a agent, part func(*rulesText) []byte) {
	set, err := s.rules.get(c.Request.Context())
	if err != nil {
		plainError(c.Writer, err)
		return
	}
	if a.modern {
		writeText(c.Writer, part(&set.v2))
	} else {
		writeText(c.Writer, part(&set.v1))
	}
}

// rulesText is what agents of one kind get.
type rulesText struct {
	text     []byte
	sha256   string
	revision uint64
}

// ruleSet is what agents get, in both forms.
type ruleSet struct{ v1, v2 rulesText }

func (r *ruleSet) revision() uint64 { return min(r.v1.revision, r.v2.revision) }

// agentRules keeps the rules of agents in memory, so that polls ask nobody. A
// watch of the bucket rules says when to fetch them anew.
type agentRules struct {
	svc   *Service
	wake  chan struct{}
	mu    sync.Mutex
	set   *ruleSet
	want  uint64
	fresh chan struct{} // closed and replaced when set changes
}

func newAgentRules(s *Service) *agentRules {
	return &agentRules{svc: s, wake: make(chan struct{}, 1), fresh: make(chan struct{})}
}

// current returns the rules, nil before the first were fetched, whether they
// are at least of a revision, and a channel that is closed at the next change.
func (r *agentRules) current(revision uint64) (*ruleSet, bool, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.set, r.set != nil && r.set.revision() >= revision, r.fresh
}

// get returns the rules, and waits for the first ones.
func (r *agentRules) get(ctx context.Context) (*ruleSet, error) {
	if set, ok, _ := r.current(0); ok {
		return set, nil
	}
	r.await(ctx, 0)
	if set, ok, _ := r.current(0); ok {
		return set, nil
	}
	return nil, fault.New(fault.Unavailable, "the rules are not known yet")
}

// await waits until the rules are at least of a revision, rulesWait at most:
// who has changed rules shall see agents get them.
func (r *agentRules) await(ctx context.Context, revision uint64) {
	ctx, cancel := context.WithTimeout(ctx, rulesWait)
	defer cancel()
	r.changed(revision)
	for {
		_, ok, fresh := r.current(revision)
		if ok {
			return
		}
		select {
		case <-fresh:
		case <-ctx.Done():
			return
		}
	}
}

// changed notes that there are rules of a revision.
func (r *agentRules) changed(revision uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.want = max(r.want, revision)
	if r.set == nil || r.set.revision() < r.want {
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
}

// run keeps the rules up to date until ctx ends.
func (r *agentRules) run(ctx context.Context) {
	var work sync.WaitGroup
	work.Go(func() { r.watch(ctx) })
	defer work.Wait()
	var retry time.Duration
	for {
		err := r.refresh(ctx)
		switch {
		case err == nil:
			retry = 0
		case retry < rulesRetryMax:
			retry = min(max(2*retry, rulesRetry), rulesRetryMax)
			r.svc.cfg.Log.Debug("rules of agents not fetched, trying again", "error", err)
			if retry == rulesRetryMax {
				r.svc.cfg.Log.Warn("rules of agents cannot be fetched, trying on", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-time.After(or(retry, rulesRefresh)):
		}
	}
}

// watch follows the bucket rules until ctx ends.
func (r *agentRules) watch(ctx context.Context) {
	name, filter := stream.KVStream(stream.Rules)
	for ctx.Err() == nil {
		err := r.follow(ctx, name, filter)
		if ctx.Err() != nil {
			return
		}
		r.svc.cfg.Log.Warn("watch of the rules is lost, trying again", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(rulesRetryMax):
		}
	}
}

func (r *agentRules) follow(ctx context.Context, name, filter string) error {
	if _, err := stream.Await(ctx, r.svc.cfg.Bus.JS, name); err != nil {
		return err
	}
	c, err := r.svc.cfg.Bus.JS.OrderedConsumer(ctx, name, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{filter}, DeliverPolicy: jetstream.DeliverLastPolicy, HeadersOnly: true,
	})
	if err != nil {
		return fmt.Errorf("consumer: %w", err)
	}
	consume, err := c.Consume(func(m jetstream.Msg) {
		if meta, err := m.Metadata(); err == nil {
			r.changed(meta.Sequence.Stream)
		}
	}, stream.Following(r.svc.cfg.Bus.JS)...)
	if err != nil {
		return fmt.Errorf("consume: %w", err)
	}
	defer consume.Stop()
	select {
	case <-ctx.Done():
		return nil
	case <-consume.Closed():
		return fmt.Errorf("the consumer was closed")
	}
}

// refresh fetches the rules. An error is returned, too, when what the
// rule-engine gives is older than what is known to exist.
func (r *agentRules) refresh(ctx context.Context) error {
	var set ruleSet
	for _, f := range []struct {
		v2   bool
		into *rulesText
	}{{false, &set.v1}, {true, &set.v2}} {
		t, err := r.fetch(ctx, f.v2)
		if err != nil {
			return err
		}
		*f.into = t
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.set != nil && set.revision() < r.set.revision() {
		return fmt.Errorf("the rule-engine is at revision %d, known is %d", set.revision(), r.set.revision())
	}
	r.set = &set
	close(r.fresh)
	r.fresh = make(chan struct{})
	if set.revision() < r.want {
		return fmt.Errorf("the rule-engine is at revision %d, there is %d", set.revision(), r.want)
	}
	select {
	case <-r.wake: // who asked meanwhile has what was asked for
	default:
	}
	return nil
}

// fetch asks for the rules' text part by part. When the rules change in
// between it begins anew.
func (r *agentRules) fetch(ctx context.Context, v2 bool) (rulesText, error) {
	var t rulesText
	for {
		reply, err := ask[message.RulesAgentReply](ctx, r.svc, message.RulesAgent, message.RulesAgentRequest{V2: v2, Offset: len(t.text)})
		if err != nil {
			return t, err
		}
		if reply.Size > maxRulesText {
			return t, fmt.Errorf("rules of %d bytes", reply.Size)
		}
		if len(t.text) > 0 && (reply.SHA256 != t.sha256 || reply.Revision != t.revision) {
			t = rulesText{}
			continue
		}
		t.sha256, t.revision = reply.SHA256, reply.Revision
		before := len(t.text)
		if t.text, err = message.Decompress(t.text, reply.Text); err != nil {
			return t, fmt.Errorf("rules' text: %w", err)
		}
		switch {
		case len(t.text) == reply.Size:
			if sum := sha256.Sum256(t.text); hex.EncodeToString(sum[:]) != t.sha256 {
				return t, fmt.Errorf("rules' text does not have the SHA-256 %s", t.sha256)
			}
			return t, nil
		case len(t.text) > reply.Size, len(t.text) == before:
			return t, fmt.Errorf("rules' text of %d bytes where %d were announced", len(t.text), reply.Size)
		}
	}
}
