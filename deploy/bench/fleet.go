package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sync/errgroup"
)

// How WHIDS agents behave: they poll, and send what they have.
const (
	pollEvery  = 5 * time.Second
	logsEvery  = 10 * time.Second
	fleetBatch = 5 // events in a body
)

var polls = []string{"/key", "/rules/sha256", "/commands"}

// contactRetry is how long an agent that was refused at its first contact waits.
const contactRetry = time.Second

// watched is what a manager used while agents were at work.
type watched struct {
	cores         float64
	resident      int64
	peak          int64
	requests      int
	refused       int // with 503
	polls, bodies []time.Duration
	late          time.Duration
	// contact is how long it took until all agents were answered that came at
	// once for the first time, unwelcome how many answers were 503.
	contact   time.Duration
	unwelcome int
}

// sent returns what agents post within a time, batches of so many events. With
// none the batches are empty.
func (b *bench) sent(agents, batch int, length time.Duration) [][]body {
	rounds := int(length/logsEvery) + 1
	if batch == 0 {
		var packed bytes.Buffer
		_ = gzip.NewWriter(&packed).Close() // writing to memory does not fail
		return slices.Repeat([][]body{slices.Repeat([]body{{packed: packed.Bytes()}}, rounds)}, agents)
	}
	plans := make([]plan, agents)
	for i := range plans {
		plans[i] = plan{first: i * 13, events: rounds * batch, batch: batch, begin: time.Now(), step: time.Second}
	}
	return b.mix.bodies(plans)
}

// watch connects agents, lets them work for a while, each sending batches of
// some events, and returns what the manager used meanwhile. A profile of that is
// recorded under a name, unless that is empty.
func (b *bench) watch(ctx context.Context, m *manager, endpoints []endpoint, batch int, length time.Duration, profile string) (*watched, error) {
	bodies := b.sent(len(endpoints), batch, length)
	agents := make([]*agent, len(endpoints))
	dial, ctx2 := errgroup.WithContext(ctx)
	dial.SetLimit(64)
	for i, e := range endpoints {
		dial.Go(func() (err error) {
			agents[i], err = m.dialAgent(ctx2, e)
			return err
		})
	}
	defer func() {
		for _, a := range agents {
			if a != nil {
				a.close()
			}
		}
	}()
	if err := dial.Wait(); err != nil {
		return nil, err
	}
	w := &watched{}
	if err := w.meet(ctx, agents); err != nil {
		return nil, err
	}
	if profile != "" {
		defer b.profileOf(m, profile)()
	}
	before, err := m.cpu()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := w.work(ctx, agents, bodies, began, length); err != nil {
		return nil, err
	}
	wall := time.Since(began)
	after, err := m.cpu()
	if err != nil {
		return nil, err
	}
	w.cores = float64(after-before) / float64(wall)
	if w.resident, err = m.memory("VmRSS"); err != nil {
		return nil, err
	}
	w.peak, err = m.memory("VmHWM")
	return w, err
}

// meet lets all agents make their first request at once. One that is refused
// comes again.
func (w *watched) meet(ctx context.Context, agents []*agent) error {
	began := time.Now()
	var unwelcome atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for _, a := range agents {
		g.Go(func() error {
			for {
				code, err := a.request(http.MethodGet, polls[0], nil)
				if err != nil {
					return err
				}
				if code == http.StatusOK {
					return nil
				}
				if code != http.StatusServiceUnavailable {
					return fmt.Errorf("first contact: status %d", code)
				}
				unwelcome.Add(1)
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(contactRetry):
				}
			}
		})
	}
	err := g.Wait()
	w.contact, w.unwelcome = time.Since(began), int(unwelcome.Load())
	return err
}

// work lets every agent poll and send at its own time: half of them send with
// every odd poll, the others with every even one.
func (w *watched) work(ctx context.Context, agents []*agent, bodies [][]body, began time.Time, length time.Duration) error {
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	for i, a := range agents {
		g.Go(func() error {
			var own watched
			due := began.Add(pollEvery * time.Duration(i) / time.Duration(len(agents)))
			for round := 0; due.Before(began.Add(length)); round++ {
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(time.Until(due)):
				}
				own.late = max(own.late, time.Since(due))
				due = due.Add(pollEvery)
				if err := own.round(a, bodies[i], round+i%2); err != nil {
					return err
				}
			}
			mu.Lock()
			defer mu.Unlock()
			w.requests += own.requests
			w.refused += own.refused
			w.polls, w.bodies = append(w.polls, own.polls...), append(w.bodies, own.bodies...)
			w.late = max(w.late, own.late)
			return nil
		})
	}
	return g.Wait()
}

// round is what an agent does each time.
func (w *watched) round(a *agent, bodies []body, round int) error {
	for _, path := range polls {
		sent := time.Now()
		code, err := a.request(http.MethodGet, path, nil)
		switch {
		case err != nil:
			return err
		case code == http.StatusServiceUnavailable: // an agent asks the next time
			w.refused++
		case code != http.StatusOK && code != http.StatusNoContent:
			return fmt.Errorf("GET %s: status %d", path, code)
		}
		w.requests++
		w.polls = append(w.polls, time.Since(sent))
	}
	if round%int(logsEvery/pollEvery) != 0 {
		return nil
	}
	sent := time.Now()
	code, err := a.request(http.MethodPost, "/logs", bodies[round/int(logsEvery/pollEvery)].packed)
	switch {
	case err != nil:
		return err
	case code == http.StatusServiceUnavailable: // an agent keeps the events
		w.refused++
	case code != http.StatusOK:
		return fmt.Errorf("POST /logs: status %d", code)
	}
	w.requests++
	w.bodies = append(w.bodies, time.Since(sent))
	return nil
}

// fleet measures many agents that have little to say.
func (b *bench) fleet(ctx context.Context) error {
	agents, length := b.size(10_000, 100), time.Duration(b.size(60, 10))*time.Second
	base, err := b.fleetBaseline(ctx, agents, min(length, 20*time.Second))
	if err != nil {
		return fmt.Errorf("plain server: %w", err)
	}
	m, err := b.start(ctx, "fleet", "--tls", "off")
	if err != nil {
		return err
	}
	var w *watched
	endpoints, err := m.enrol(ctx, agents)
	if err == nil {
		w, err = b.watch(ctx, m, endpoints, fleetBatch, length, "fleet")
	}
	if err := errors.Join(err, m.stop(), os.RemoveAll(m.dir)); err != nil {
		return err
	}
	b.say("fleet: first contact of all at once: answered in %s, %d times with 503", w.contact.Round(time.Millisecond), w.unwelcome)
	b.say("fleet: %d requests in %s, %d of them refused, begun up to %s late; polls p50 %s ms, p99 %s ms; POST /logs p50 %s ms, p99 %s ms", w.requests, length, w.refused, w.late.Round(time.Millisecond),
		short(percentile(w.polls, 0.5)), short(percentile(w.polls, 0.99)), short(percentile(w.bodies, 0.5)), short(percentile(w.bodies, 0.99)))
	name := short(float64(agents)) + " agents: "
	b.add(figure{section: "fleet", name: name + "cores used", value: w.cores, bound: atMost, goal: 1, baseline: base.cores, against: "a plain net/http server"})
	b.add(figure{section: "fleet", name: name + "peak resident memory", unit: "MB", value: float64(w.peak) / 1e6, bound: atMost, goal: 1 << 30 / 1e6,
		baseline: float64(base.peak) / 1e6, against: "a plain net/http server"})
	b.add(figure{section: "fleet", name: name + "polls, p50", unit: "ms", value: percentile(w.polls, 0.5), baseline: percentile(base.polls, 0.5), against: "a plain net/http server"})
	return nil
}

// serveFlag makes the program be the plain server.
const serveFlag = "serve-plainly"

// servePlainly answers every request with an empty 200 until standard input
// ends. It prints its address.
func servePlainly() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println("http://" + l.Addr().String())
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusOK)
	})}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = s.Close()
	}()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// fleetBaseline lets the same agents talk to a plain server.
func (b *bench) fleetBaseline(ctx context.Context, agents int, length time.Duration) (*watched, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "-"+serveFlag)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	defer func() {
		_ = in.Close()
		_ = cmd.Wait()
	}()
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, err
	}
	endpoints := make([]endpoint, agents)
	for i := range endpoints {
		endpoints[i] = endpoint{UUID: fmt.Sprintf("00000000-0000-0000-0000-%012d", i), Key: strings.Repeat("k", 64)}
	}
	return b.watch(ctx, &manager{agent: strings.TrimSpace(address), pid: cmd.Process.Pid, dir: b.dir}, endpoints, fleetBatch, length, "")
}

// idle measures a manager with ten agents that have nothing to send, and then
// a few events each.
func (b *bench) idle(ctx context.Context) error {
	length := time.Duration(b.size(30, 5)) * time.Second
	m, err := b.start(ctx, "idle")
	if err != nil {
		return err
	}
	var nothing, little *watched
	endpoints, err := m.enrol(ctx, 10)
	if err == nil { // what a start leaves to do is over by then
		_, err = b.watch(ctx, m, endpoints, 0, length/3, "")
	}
	if err == nil {
		nothing, err = b.watch(ctx, m, endpoints, 0, length, "idle")
	}
	if err == nil {
		little, err = b.watch(ctx, m, endpoints, fleetBatch, length, "little")
	}
	if err := errors.Join(err, m.stop(), os.RemoveAll(m.dir)); err != nil {
		return err
	}
	b.add(figure{section: "idle", name: "10 agents: resident memory", unit: "MB", value: float64(max(nothing.resident, little.resident)) / 1e6, bound: atMost, goal: 150})
	b.add(figure{section: "idle", name: "10 agents with nothing to send: part of a core", unit: "%", value: 100 * nothing.cores, bound: atMost, goal: 1})
	b.add(figure{section: "idle", name: fmt.Sprintf("10 agents with %d events every 10 s: part of a core", fleetBatch), unit: "%", value: 100 * little.cores})
	return nil
}
