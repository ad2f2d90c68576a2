package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/nightjar-edr/nightjar/pkg/bus"
	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/view"
)

// How a gateway and its peers keep to the same endpoints and removals. lease must be
// shorter than peersWait: a gateway that has not been heard of for the whole
// of peersWait answers no agent any more.
const (
	// peersInterval is how often a gateway says that it is there, renewEvery
	// how often it makes sure that it knows all endpoints and removals.
	peersInterval = time.Second
	renewEvery    = 2 * time.Second
	// lease is how long it answers agents by what it has made sure of.
	lease = 5 * time.Second
	// peersWait bounds how long a change waits for other gateways.
	peersWait = 6 * time.Second
	// peersMemory is how long a gateway that falls silent is waited for: at
	// least until its lease has run out.
	peersMemory = 2 * lease
	// peersSettle is how long a gateway must have listened to know the others.
	peersSettle = 3 * peersInterval / 2
)

// errLapsed is why no agent is answered.
var errLapsed = fault.New(fault.Unavailable, "this gateway cannot make sure at the moment which endpoints exist")

// peerState is another gateway as it was last heard of.
type peerState struct {
	endpoints, removed uint64
	heard              time.Time
}

// peers lets a change of an endpoint, or a removal of what it had stored, be
// answered when every gateway acts by it. Each gateway tells the others how far
// its views of endpoints and of removals are, and who makes a change waits for
// those who were heard of lately. One that is not heard of is cut off from NATS,
// or stands still: it answers agents only for as long as its lease lasts. A
// gateway that is alone has nobody to tell and no lease, as it makes every
// change itself.
type peers struct {
	bus   *bus.Bus
	log   *slog.Logger
	alone bool
	// view is the view of endpoints, removals that of removals.
	view, removals *view.View
	name           string

	mu sync.Mutex
	by map[string]peerState
	// told is closed and replaced when by changes.
	told chan struct{}
	// sure is when the views were known to hold everything, since when it
	// has been so without a lapse. Zero before the first time.
	sure, since time.Time

	// lapsed is what the log last said, used by renew alone.
	lapsed bool
}

func newPeers(b *bus.Bus, log *slog.Logger, alone bool, endpoints, removals *view.View) *peers {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return &peers{bus: b, log: log, alone: alone, view: endpoints, removals: removals, name: host + "/" + newKey()[:8], by: map[string]peerState{}, told: make(chan struct{})}
}

// current returns nil while this gateway may answer agents: not long ago its
// views held every endpoint, every deletion and every removal there was.
func (p *peers) current() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sure.IsZero() || !p.alone && time.Since(p.sure) > lease {
		return errLapsed
	}
	return nil
}

// join makes this gateway and the others known to each other, before it first
// makes sure which endpoints exist: a change either waits for this gateway, or
// was made before and is known to it. leave ends that.
func (p *peers) join(ctx context.Context) (leave func(), err error) {
	if p.alone {
		p.renew(ctx)
		return func() {}, nil
	}
	sub, err := p.bus.NC.Subscribe(message.GatewayAlive, p.hear)
	if err != nil {
		return nil, fmt.Errorf("subscribe to %s: %w", message.GatewayAlive, err)
	}
	p.say(false)
	p.renew(ctx)
	return func() {
		if err := sub.Unsubscribe(); err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
			p.log.Warn("unsubscribe", "subject", message.GatewayAlive, "error", err)
		}
		p.say(true)
	}, nil
}

func (p *peers) hear(m *nats.Msg) {
	var a message.Alive
	if err := json.Unmarshal(m.Data, &a); err != nil || a.Gateway == "" {
		p.log.Warn("a gateway's message cannot be read", "subject", m.Subject, "error", err)
		return
	}
	if a.Gateway == p.name {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if a.Leaving {
		delete(p.by, a.Gateway)
	} else {
		p.by[a.Gateway] = peerState{endpoints: a.Endpoints, removed: a.Removed, heard: time.Now()}
	}
	close(p.told)
	p.told = make(chan struct{})
}

// say tells the others how far this gateway is. What does not reach them they
// hear the next time.
func (p *peers) say(leaving bool) {
	data, err := json.Marshal(message.Alive{Gateway: p.name, Endpoints: p.view.Position(), Removed: p.removals.Position(), Leaving: leaving})
	if err == nil {
		err = p.bus.NC.Publish(message.GatewayAlive, data)
	}
	if err != nil {
		p.log.Debug("other gateways were not told", "error", err)
	}
}

// run says that this gateway is there, and makes sure which endpoints exist,
// until ctx ends. A gateway that is alone makes sure of them once.
func (p *peers) run(ctx context.Context) {
	if p.alone {
		for p.current() != nil && lifecycle.Sleep(ctx, renewEvery) == nil {
			p.renew(ctx)
		}
		return
	}
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() {
		for ctx.Err() == nil {
			endpoints, removed := p.view.Position(), p.removals.Position()
			p.say(false)
			p.further(ctx, endpoints, removed)
		}
	})
	t := time.NewTicker(renewEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			p.renew(ctx)
		}
	}
}

// further waits until a view is further than it was, or it is time to say again
// how far it is.
func (p *peers) further(ctx context.Context, endpoints, removed uint64) {
	ctx, cancel := context.WithTimeout(ctx, peersInterval)
	defer cancel()
	var either sync.WaitGroup
	defer either.Wait()
	for v, was := range map[*view.View]uint64{p.view: endpoints, p.removals: removed} {
		either.Go(func() {
			_ = v.Wait(ctx, was+1) // or the time is over
			cancel()
		})
	}
}

// renew makes sure that the views hold every endpoint and removal there is. The log says
// when that ends and begins again, not each time.
func (p *peers) renew(ctx context.Context) {
	asking, cancel := context.WithTimeout(ctx, lease)
	defer cancel()
	err := p.sync(asking)
	lapsed := p.current() != nil
	switch {
	case ctx.Err() != nil || lapsed == p.lapsed:
		return
	case lapsed:
		p.log.Warn("agents are refused, as it is not sure which endpoints exist", "error", err)
	default:
		p.log.Info("agents are answered again")
	}
	p.lapsed = lapsed
}

// sync returns when the views hold every endpoint, deletion and removal of now.
func (p *peers) sync(ctx context.Context) error {
	began := time.Now()
	for _, v := range []*view.View{p.view, p.removals} {
		if err := v.Sync(ctx); err != nil {
			return err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sure.IsZero() || time.Since(p.sure) > lease {
		p.since = time.Now()
	}
	if began.After(p.sure) {
		p.sure = began
	}
	return nil
}

// await returns when this gateway and every other one acts by all changes
// that were acknowledged before the call. One that is silent for all of
// peersWait answers no agent until it does; the log names it. An error means
// that this gateway itself does not.
func (p *peers) await(ctx context.Context) error {
	if err := p.sync(ctx); err != nil || p.alone {
		return err
	}
	endpoints, removed := p.view.Position(), p.removals.Position()
	ctx, cancel := context.WithTimeout(ctx, peersWait)
	defer cancel()
	for {
		behind, settled, told := p.behind(endpoints, removed)
		if len(behind) == 0 && settled <= 0 {
			return nil
		}
		var listened <-chan time.Time
		if settled > 0 {
			listened = time.After(settled)
		}
		select {
		case <-told:
		case <-listened:
		case <-ctx.Done():
			if len(behind) > 0 {
				p.log.Warn("gateways did not say that they act by a change, they refuse agents until they do", "gateways", strings.Join(behind, " "), "endpoints", endpoints, "removed", removed)
			}
			return nil
		}
	}
}

// behind returns the other gateways that have not got to these revisions, how long
// it takes until all others are known, and a channel that is closed when one
// is heard of.
func (p *peers) behind(endpoints, removed uint64) (names []string, settled time.Duration, told <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, peer := range p.by {
		switch {
		case time.Since(peer.heard) > peersMemory:
			delete(p.by, name)
		case peer.endpoints < endpoints || peer.removed < removed:
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, peersSettle - time.Since(p.since), p.told
}
