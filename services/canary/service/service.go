package canary

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/tracing"
)

const (
	// heard is how many alerts may wait to be looked at: more than rounds that
	// come to nothing leave behind until the next one looks.
	heard = 64
	// firstPause is the time between two looks at the admin API, which doubles
	// up to lastPause.
	firstPause = 20 * time.Millisecond
	lastPause  = 500 * time.Millisecond
	// startInterval is the time between rounds until the first has succeeded:
	// a manager that starts together with its canary takes a moment.
	startInterval = 2 * time.Second
)

var errStarting = errors.New("no round has ended yet")

// Service is the canary. Make it with New and run it with Run.
type Service struct {
	cfg     Config
	api     *client
	metrics *metrics
	alerts  chan *nats.Msg
	// me and sub are used by Run alone.
	me  identity
	sub *nats.Subscription

	mu    sync.Mutex
	state error
}

// New checks cfg and reads who the canary is. It asks nobody anything.
func New(cfg Config) (*Service, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("%w: %w", lifecycle.ErrUsage, err)
	}
	api, err := newClient(&cfg)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", lifecycle.ErrUsage, err)
	}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("data-dir %s: %w", cfg.DataDir, err)
	}
	s := &Service{cfg: cfg, api: api, metrics: newMetrics(cfg.Metrics), alerts: make(chan *nats.Msg, heard), state: errStarting}
	if s.me, err = loadIdentity(cfg.DataDir); err != nil {
		return nil, err
	}
	return s, nil
}

// Ready returns nil when the last round has succeeded, otherwise what failed
// in it.
func (s *Service) Ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// Run makes one round after the other until ctx ends, then breaks off the one
// in hand and returns nil. What the manager does is no failure of Run.
func (s *Service) Run(ctx context.Context) error {
	defer s.api.close()
	defer s.unlisten()
	working := false
	tick := time.NewTicker(min(startInterval, s.cfg.Interval))
	defer tick.Stop()
	for {
		err := s.round(ctx)
		if ctx.Err() != nil {
			return nil
		}
		s.ended(err)
		if err == nil && !working {
			working = true
			tick.Reset(s.cfg.Interval)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// ended records what has come of a round.
func (s *Service) ended(err error) {
	s.metrics.round(err)
	s.mu.Lock()
	before := s.state
	s.state = err
	s.mu.Unlock()
	switch {
	case err != nil:
		s.cfg.Log.Warn("round failed", "error", err)
	case before != nil:
		s.cfg.Log.Info("round succeeded", "endpoint", s.me.UUID)
	}
}

// round goes through all steps. The event's way and the command's are walked
// apart, so that what is wrong with one hides nothing of the other.
func (s *Service) round(ctx context.Context) error {
	ctx, span := s.cfg.Bus.Trace.Start(ctx, "round", tracing.Internal)
	err := s.walk(ctx)
	span.End(err)
	return err
}

func (s *Service) walk(ctx context.Context) error {
	nonce := rand.Text()
	if err := s.step(ctx, stepEndpoint, s.enrol); err != nil {
		return err
	}
	return errors.Join(s.step(ctx, stepRule, s.install), s.walkEvent(ctx, nonce), s.walkCommand(ctx, nonce))
}

func (s *Service) walkEvent(ctx context.Context, nonce string) error {
	e := s.newEvent(nonce)
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{stepListen, s.listen},
		{stepEvent, func(ctx context.Context) error { return s.post(ctx, e) }},
		{stepAlert, func(ctx context.Context) error { return s.hear(ctx, e) }},
		{stepQuery, func(ctx context.Context) error { return s.query(ctx, e, nonce) }},
		{stepScore, func(ctx context.Context) error { return s.score(ctx, e) }},
	} {
		if err := s.step(ctx, step.name, step.do); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) walkCommand(ctx context.Context, nonce string) error {
	var id string
	if err := s.step(ctx, stepCommand, func(ctx context.Context) (err error) { id, err = s.queue(ctx, nonce); return err }); err != nil {
		return err
	}
	if err := s.step(ctx, stepFetch, func(ctx context.Context) error { return s.fetch(ctx, id, nonce) }); err != nil {
		s.cancel(ctx, id)
		return err
	}
	c, stdout := &command{UUID: id, Name: commandName, Args: []string{nonce}}, []byte(nonce)
	if err := s.step(ctx, stepAnswer, func(ctx context.Context) error { return s.answer(ctx, c, stdout, "") }); err != nil {
		return err
	}
	return s.step(ctx, stepResult, func(ctx context.Context) error {
		return s.result(ctx, id, base64.StdEncoding.EncodeToString(stdout))
	})
}

// step does one step within its time and records what comes of it, unless the
// canary is being stopped.
func (s *Service) step(ctx context.Context, name string, do func(context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	limited, span := s.cfg.Bus.Trace.Start(limited, name, tracing.Client)
	span.Endpoint(s.me.UUID)
	began := time.Now()
	err := do(limited)
	span.End(err)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil {
		s.metrics.succeeded(name, time.Since(began))
		return nil
	}
	reason := reasonLocal
	if f := (*failure)(nil); errors.As(err, &f) {
		reason = f.reason
	}
	s.metrics.failures.WithLabelValues(name, reason).Inc()
	return fmt.Errorf("%s: %w", name, err)
}

// poll repeats a look until it succeeds, until what it sees is wrong, or until
// ctx ends, and returns what the last whole look said.
func (s *Service) poll(ctx context.Context, look func(context.Context) error) error {
	var last error
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		err := look(ctx)
		if err == nil {
			return nil
		}
		if f := (*failure)(nil); errors.As(err, &f) && f.reason == reasonWrong {
			return err
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return last
		}
	}
}
