package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
	"github.com/nightjar-edr/nightjar/pkg/tracing"
)

// Handler answers a request: data and headers, or an error whose kind and
// message reach the caller.
type Handler func(ctx context.Context, data []byte) (*Reply, error)

// Reply is an answer.
type Reply struct {
	Data   []byte
	Header nats.Header
}

// Service answers requests over the micro framework.
type Service struct {
	svc     micro.Service
	bus     *Bus
	slots   chan struct{}
	mu      sync.Mutex // guards stopped, and work against growing after it
	stopped bool
	work    sync.WaitGroup
	ctx     context.Context
	timeout time.Duration
	observe func(subject string, took time.Duration, err error)
}

// Serve announces a service. Up to parallel requests are worked on at once,
// each for at most timeout. observe, if not nil, is told of each request.
func Serve(ctx context.Context, b *Bus, name, version string, parallel int, timeout time.Duration, observe func(subject string, took time.Duration, err error)) (*Service, error) {
	svc, err := micro.AddService(b.NC, micro.Config{Name: name, Version: version, Description: "Nightjar " + name})
	if err != nil {
		return nil, fmt.Errorf("announce service %s: %w", name, err)
	}
	return &Service{svc: svc, bus: b, slots: make(chan struct{}, parallel), ctx: ctx, timeout: timeout, observe: observe}, nil
}

// Handle answers requests on a subject. Replicas share the requests. When it
// returns nil the server knows of it, so a request finds the service; where the
// connection is lost meanwhile, the server is told when it is back.
func (s *Service) Handle(subject string, h Handler) error {
	return s.HandleWithin(subject, s.timeout, h)
}

// HandleWithin is Handle for requests that may take another time than the
// service's others. An answer must reach the server within two minutes.
func (s *Service) HandleWithin(subject string, timeout time.Duration, h Handler) error {
	name := strings.NewReplacer(".", "-", "*", "any", ">", "all").Replace(subject)
	err := s.svc.AddEndpoint(name, micro.HandlerFunc(func(r micro.Request) {
		if !s.begin() {
			if err := r.Error(string(fault.Unavailable), "stopping", nil); err != nil {
				s.bus.Log.Debug("answer not sent", "subject", r.Subject(), "error", err)
			}
			return
		}
		s.slots <- struct{}{}
		go func() {
			defer func() { <-s.slots; s.work.Done() }()
			s.answer(r, timeout, h)
		}()
	}), micro.WithEndpointSubject(subject))
	if err != nil {
		return fmt.Errorf("answer on %s: %w", subject, err)
	}
	// From here on a request finds the service.
	if err := s.bus.NC.FlushTimeout(5 * time.Second); err != nil {
		if s.bus.NC.IsClosed() {
			return fmt.Errorf("answer on %s: %w", subject, err)
		}
		s.bus.Log.Warn("announced when nats is back", "subject", subject, "error", err)
	}
	return nil
}

// begin counts a request in, unless the service has stopped.
func (s *Service) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return false
	}
	s.work.Add(1)
	return true
}

func (s *Service) answer(r micro.Request, timeout time.Duration, h Handler) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()
	span := (*tracing.Span)(nil)
	if t := s.bus.Trace; t != nil {
		ctx, span = t.Continue(ctx, r.Headers().Get(tracing.Header), "answer "+r.Subject(), tracing.Server)
	}
	reply, err := s.guard(ctx, r, h)
	span.End(err)
	if s.observe != nil {
		s.observe(r.Subject(), time.Since(began), err)
	}
	if err != nil {
		f := fault.From(err)
		if f.Kind == fault.Internal {
			s.bus.Log.Error("request failed", "subject", r.Subject(), "error", err)
		}
		// As r.Error does, which may not be called once the framework's own
		// handler has returned.
		err = r.Respond(nil, micro.WithHeaders(micro.Headers{micro.ErrorHeader: {f.Message}, micro.ErrorCodeHeader: {string(f.Kind)}}))
	} else {
		err = r.Respond(reply.Data, micro.WithHeaders(micro.Headers(reply.Header)))
	}
	if err != nil {
		s.bus.Log.Warn("answer not sent", "subject", r.Subject(), "error", err)
	}
}

// guard turns a panic of a handler into an error of this one request.
func (s *Service) guard(ctx context.Context, r micro.Request, h Handler) (reply *Reply, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.bus.Log.Error("handler panicked", "subject", r.Subject(), "panic", p, "stack", string(debug.Stack()))
			err = fault.New(fault.Internal, "internal error")
		}
	}()
	reply, err = h(ctx, r.Data())
	if reply == nil {
		reply = &Reply{}
	}
	return reply, err
}

// Stop ends the announcement and waits for requests in hand.
func (s *Service) Stop() {
	if err := s.svc.Stop(); err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
		s.bus.Log.Warn("stop service", "error", err)
	}
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	s.work.Wait()
}

// JSON makes a Handler of a function from a request to an answer in JSON.
func JSON[Q, A any](f func(ctx context.Context, q Q) (A, error)) Handler {
	return func(ctx context.Context, data []byte) (*Reply, error) {
		var q Q
		if len(data) > 0 {
			if err := json.Unmarshal(data, &q); err != nil {
				return nil, fault.New(fault.Invalid, "malformed request: %v", err)
			}
		}
		a, err := f(ctx, q)
		if err != nil {
			return nil, err
		}
		out, err := json.Marshal(a)
		if err != nil {
			return nil, fmt.Errorf("encode answer: %w", err)
		}
		return &Reply{Data: out}, nil
	}
}

// unanswered is the error of a request without an answer, with its cause.
type unanswered struct {
	fault *fault.Error
	cause error
}

func (e *unanswered) Error() string   { return e.fault.Error() }
func (e *unanswered) Unwrap() []error { return []error{e.fault, e.cause} }

// Request asks on a subject and waits for the answer until ctx ends. The
// error of the other side comes back with its kind and message; no answer is
// an Unavailable error, which wraps nats.ErrNoResponders when nobody is there
// to answer.
func (b *Bus) Request(ctx context.Context, subject string, data []byte) (*nats.Msg, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
	}
	m, err := b.request(ctx, subject, data)
	if err != nil {
		return nil, &unanswered{fault.New(fault.Unavailable, "no answer on %s: %v", subject, err), err}
	}
	if code := m.Header.Get(micro.ErrorCodeHeader); code != "" {
		return nil, &fault.Error{Kind: fault.Kind(code), Message: m.Header.Get(micro.ErrorHeader)}
	}
	return m, nil
}

// request asks, as a part of the trace in ctx where there is one.
func (b *Bus) request(ctx context.Context, subject string, data []byte) (*nats.Msg, error) {
	if b.Trace == nil {
		return b.NC.RequestWithContext(ctx, subject, data)
	}
	q := &nats.Msg{Subject: subject, Data: data}
	ctx, span := b.Trace.Child(ctx, "ask "+subject, tracing.Client)
	if span != nil {
		q.Header = nats.Header{}
		span.Inject(q.Header)
	}
	m, err := b.NC.RequestMsgWithContext(ctx, q)
	if err == nil && m.Header.Get(micro.ErrorCodeHeader) != "" {
		span.Fail()
	}
	span.End(err)
	return m, err
}

// Call asks in JSON and decodes the answer.
func Call[A any](ctx context.Context, b *Bus, subject string, q any) (A, error) {
	var a A
	data, err := json.Marshal(q)
	if err != nil {
		return a, fmt.Errorf("encode request: %w", err)
	}
	m, err := b.Request(ctx, subject, data)
	if err != nil {
		return a, err
	}
	if err := json.Unmarshal(m.Data, &a); err != nil {
		return a, fault.New(fault.Internal, "answer on %s: %v", subject, err)
	}
	return a, nil
}
