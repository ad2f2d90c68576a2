package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
)

// agent is an agent's kept connection. net/http's client would cost the load
// generator more than the manager's work on a small request.
type agent struct {
	endpoint
	nc net.Conn
	r  *bufio.Reader
	w  *bufio.Writer
}

// dialAgent connects as an endpoint.
func (m *manager) dialAgent(ctx context.Context, e endpoint) (*agent, error) {
	u, err := url.Parse(m.agent)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, fmt.Errorf("connect as an agent: %w", err)
	}
	if cfg := m.trust(); cfg != nil {
		nc = tls.Client(nc, cfg)
	}
	return &agent{endpoint: e, nc: nc, r: bufio.NewReaderSize(nc, 1<<10), w: bufio.NewWriterSize(nc, 2<<10)}, nil
}

func (a *agent) close() { _ = a.nc.Close() }

// request makes one request and returns the status of the answer, whose body
// is dropped.
func (a *agent) request(method, path string, packed []byte) (int, error) {
	for _, part := range [...]string{method, " ", path, " HTTP/1.1\r\nHost: manager\r\nUUID: ", a.UUID, "\r\nApi-Key: ", a.Key,
		"\r\nHostname: host-", a.UUID[:8], "\r\n"} {
		_, _ = a.w.WriteString(part) // Flush tells
	}
	if packed != nil {
		_, _ = a.w.WriteString("Content-Encoding: gzip\r\nContent-Length: ")
		_, _ = a.w.WriteString(strconv.Itoa(len(packed)))
		_, _ = a.w.WriteString("\r\n")
	}
	_, _ = a.w.WriteString("\r\n")
	_, _ = a.w.Write(packed)
	if err := a.w.Flush(); err != nil {
		return 0, fmt.Errorf("%s %s: %w", method, path, err)
	}
	resp, err := http.ReadResponse(a.r, nil)
	if err != nil {
		return 0, fmt.Errorf("%s %s: %w", method, path, err)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	return resp.StatusCode, err
}

// post sends a body of events and demands 200.
func (a *agent) post(b body) error {
	code, err := a.request(http.MethodPost, "/logs", b.packed)
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("POST /logs: status %d", code)
	}
	return err
}

// loaded is what posting everything took.
type loaded struct {
	events, raw int
	wall        time.Duration
	// cpu is what the manager used until everything was stored and
	// detected, settling how long that took after the last acknowledgement.
	cpu, settling time.Duration
	times         []time.Duration
}

// load posts every endpoint's bodies, each endpoint over one connection and
// one request at a time, and waits until all is stored and detected.
func (m *manager) load(ctx context.Context, endpoints []endpoint, bodies [][]body) (*loaded, error) {
	l := &loaded{}
	agents := make([]*agent, len(endpoints))
	perAgent := make([][]time.Duration, len(endpoints))
	for i, e := range endpoints {
		var err error
		if agents[i], err = m.dialAgent(ctx, e); err != nil {
			return nil, err
		}
		defer agents[i].close()
		for _, b := range bodies[i] {
			l.events += b.events
			l.raw += b.raw
		}
	}
	stored, detected, err := m.progress()
	if err != nil {
		return nil, err
	}
	before, err := m.cpu()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	g, ctx2 := errgroup.WithContext(ctx)
	for i := range agents {
		g.Go(func() error {
			perAgent[i] = make([]time.Duration, 0, len(bodies[i]))
			for _, b := range bodies[i] {
				if ctx2.Err() != nil {
					return ctx2.Err()
				}
				sent := time.Now()
				if err := agents[i].post(b); err != nil {
					return err
				}
				perAgent[i] = append(perAgent[i], time.Since(sent))
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	l.wall = time.Since(began)
	if err := m.await(ctx, "nightjar_log_ingest_events_stored_total", stored+float64(l.events)); err != nil {
		return nil, err
	}
	l.settling = time.Since(began) - l.wall
	if err := m.await(ctx, "nightjar_rule_engine_events_total", detected+float64(l.events)); err != nil {
		return nil, err
	}
	after, err := m.cpu()
	l.cpu = after - before
	for _, t := range perAgent {
		l.times = append(l.times, t...)
	}
	return l, err
}

// progress returns how many events are stored and detected.
func (m *manager) progress() (stored, detected float64, err error) {
	if stored, err = m.metric("nightjar_log_ingest_events_stored_total"); err != nil {
		return 0, 0, err
	}
	detected, err = m.metric("nightjar_rule_engine_events_total")
	return stored, detected, err
}

// perMillion scales CPU time to a million events.
func (l *loaded) perMillion() float64 { return l.cpu.Seconds() / float64(l.events) * 1e6 }

// rate returns events a second.
func (l *loaded) rate() float64 { return float64(l.events) / l.wall.Seconds() }
