package ops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
)

// Server is the ops listener of a process. Each service of the process has a
// registry and checks of its own.
type Server struct {
	ln   net.Listener
	http *http.Server
	log  *slog.Logger

	mu         sync.Mutex
	registries prometheus.Gatherers
	checks     map[string]func() error
}

// Listen opens the ops address. Serve answers on it.
func Listen(addr string, log *slog.Logger) (*Server, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("ops-addr %s: %w", addr, err)
	}
	s := &Server{ln: ln, log: log, checks: map[string]func() error{}}
	process := prometheus.NewRegistry()
	process.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildInfo(), readiness{s})
	s.registries = append(s.registries, process)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", s.readyz)
	mux.Handle("GET /metrics", promhttp.HandlerFor(prometheus.GathererFunc(s.gather), promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}))
	s.http = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second}
	return s, nil
}

// Registry returns a new registry for a service's metrics.
func (s *Server) Registry(string) *prometheus.Registry {
	r := prometheus.NewRegistry()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.registries = append(s.registries, r)
	return r
}

// Check adds a check to readiness.
func (s *Server) Check(name string, ready func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.checks[name] = ready
}

// ready asks all checks.
func (s *Server) ready() map[string]error {
	s.mu.Lock()
	checks := maps.Clone(s.checks)
	s.mu.Unlock()
	state := make(map[string]error, len(checks))
	for name, check := range checks {
		state[name] = check()
	}
	return state
}

// Addr returns the address that is listened on.
func (s *Server) Addr() string { return s.ln.Addr().String() }

func (s *Server) gather() ([]*dto.MetricFamily, error) {
	s.mu.Lock()
	g := append(prometheus.Gatherers(nil), s.registries...)
	s.mu.Unlock()
	return g.Gather()
}

func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	state, code := map[string]string{}, http.StatusOK
	for name, err := range s.ready() {
		state[name] = "ready"
		if err != nil {
			state[name], code = err.Error(), http.StatusServiceUnavailable
		}
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(state); err != nil {
		s.log.Debug("readyz", "error", err)
	}
}

// Serve answers until Close.
func (s *Server) Serve() {
	if err := s.http.Serve(s.ln); err != nil && !errors.Is(err, http.ErrServerClosed) {
		s.log.Error("ops listener", "error", err)
	}
}

// Close stops answering and closes the listener, whether Serve was called or
// not.
func (s *Server) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := s.http.Shutdown(ctx); err != nil {
		s.log.Debug("ops listener", "error", err)
	}
	// Shutdown knows the listener only once Serve has it.
	if err := s.ln.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		s.log.Debug("ops listener", "error", err)
	}
}
