package ops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
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
	process.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildInfo())
	s.registries = append(s.registries, process)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", s.readyz)
	mux.Handle("GET /metrics", promhttp.HandlerFor(prometheus.GathererFunc(s.gather), promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}))
	s.http = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second}
	return s, nil
}

func buildInfo() prometheus.Collector {
	version, revision, goVersion := "unknown", "unknown", "unknown"
	if bi, ok := debug.ReadBuildInfo(); ok {
		version, goVersion = bi.Main.Version, bi.GoVersion
		for _, s := range bi.Settings {
			if s.Key == "vcs.revision" {
				revision = s.Value
			}
		}
	}
	g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "nightjar_build_info", Help: "Always 1; the labels say what was built.",
		ConstLabels: prometheus.Labels{"version": version, "revision": revision, "goversion": goVersion}})
	g.Set(1)
	return g
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

// Addr returns the address that is listened on.
func (s *Server) Addr() string { return s.ln.Addr().String() }

func (s *Server) gather() ([]*dto.MetricFamily, error) {
	s.mu.Lock()
	g := append(prometheus.Gatherers(nil), s.registries...)
	s.mu.Unlock()
	return g.Gather()
}

func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	checks := make(map[string]func() error, len(s.checks))
	for name, c := range s.checks {
		checks[name] = c
	}
	s.mu.Unlock()
	state, code := map[string]string{}, http.StatusOK
	for name, c := range checks {
		state[name] = "ready"
		if err := c(); err != nil {
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
