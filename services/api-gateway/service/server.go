package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
)

const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
	maxHeader     = 64 << 10
	// shutdownTimeout is how long requests may go on once the gateway stops,
	// abortTimeout how long they have to notice that they are broken off.
	shutdownTimeout = 8 * time.Second
	abortTimeout    = time.Second
)

// httpServer is one API on its listener.
type httpServer struct {
	ln   net.Listener
	http *http.Server
	stop context.CancelFunc
	tls  bool
}

// newServer makes a server that does not answer yet.
func newServer(ln net.Listener, h http.Handler, cfg *Config) *httpServer {
	base, stop := context.WithCancel(context.Background())
	return &httpServer{ln: ln, stop: stop, tls: cfg.TLS != nil, http: &http.Server{
		Handler: h, TLSConfig: cfg.TLS.Clone(), ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		BaseContext: func(net.Listener) context.Context { return base },
		ErrorLog:    slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}}
}

// serve answers until shutdown.
func (s *httpServer) serve() error {
	var err error
	if s.tls {
		err = s.http.ServeTLS(s.ln, "", "")
	} else {
		err = s.http.Serve(s.ln)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve %s: %w", s.ln.Addr(), err)
}

// shutdown lets requests in hand finish, then breaks off what is left.
func (s *httpServer) shutdown(log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	err := s.http.Shutdown(ctx)
	s.stop()
	// A server that never served does not know its listener.
	_ = s.ln.Close()
	if err == nil {
		return
	}
	log.Warn("requests are broken off", "listener", s.ln.Addr().String(), "error", err)
	ctx, cancel = context.WithTimeout(context.Background(), abortTimeout)
	defer cancel()
	if err := s.http.Shutdown(ctx); err != nil {
		_ = s.http.Close()
	}
}

// unavailable answers 503 and asks the client to come back in 5 to 15
// seconds, not all of them at once.
func unavailable(w http.ResponseWriter, text string) {
	w.Header().Set("Retry-After", strconv.Itoa(5+rand.IntN(11)))
	plain(w, http.StatusServiceUnavailable, text)
}

// plainError answers an error with its status, in plain text.
func plainError(w http.ResponseWriter, err error) {
	switch {
	case errors.Is(err, errNotGzip):
		plain(w, http.StatusInternalServerError, "Cannot create gzip reader")
		return
	case errors.Is(err, errCoding):
		plain(w, http.StatusUnsupportedMediaType, err.Error())
		return
	}
	f := fault.From(err)
	if f.Kind == fault.Unavailable {
		unavailable(w, f.Message)
		return
	}
	plain(w, f.Status(), f.Message)
}

// peer returns the address that a request comes from, without port and zone.
func peer(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	return address(host)
}
