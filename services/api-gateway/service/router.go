package gateway

import (
	"net/http"
	"path"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/tracing"
)

// route is one method of one path. Segments of the path that begin with a
// colon are parameters; those named in parameterForms match only what has
// their form.
type route struct {
	method, path string
	handle       gin.HandlerFunc
}

// parameterForms are the forms of path parameters. A path whose parameter has
// another form does not exist.
var parameterForms = map[string]func(string) bool{
	"uuid":    subject.IsUUID,
	"command": subject.IsUUID,
	"pguid":   subject.IsUUID,
	"ehash":   message.IsEventHash,
}

// router serves the routes of one API.
type router struct {
	api      string
	routes   []route
	engine   *gin.Engine
	slots    chan struct{}
	progress time.Duration
	svc      *Service
}

var releaseMode = sync.OnceFunc(func() { gin.SetMode(gin.ReleaseMode) })

// newRouter makes the handler of an API. What does not exist is answered with
// 404 or 405 before anybody is asked who they are.
func newRouter(s *Service, api string, routes []route, parallel int) *router {
	releaseMode()
	r := &router{api: api, routes: routes, engine: gin.New(), slots: make(chan struct{}, parallel), progress: s.cfg.ProgressTimeout, svc: s}
	r.engine.RedirectTrailingSlash = false
	r.engine.RedirectFixedPath = false
	r.engine.HandleMethodNotAllowed = true
	r.engine.ForwardedByClientIP = false
	r.engine.Use(r.guard)
	r.engine.NoRoute(r.missing)
	r.engine.NoMethod(r.missing)
	for _, rt := range routes {
		r.engine.Handle(rt.method, rt.path, r.forms, rt.handle)
	}
	return r
}

// ServeHTTP implements http.Handler.
func (r *router) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	t := newTransfer(w, req, r.progress)
	defer t.end()
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	default:
		r.svc.metrics.observe(r.api, "busy", "503", 0)
		unavailable(t, "too many requests at the moment")
		return
	}
	r.svc.metrics.inflight.WithLabelValues(r.api).Inc()
	defer r.svc.metrics.inflight.WithLabelValues(r.api).Dec()
	if clean := cleanPath(req.URL.Path); clean != req.URL.Path {
		u := *req.URL
		u.Path, u.RawPath = clean, ""
		t.Header().Set("Location", u.String())
		t.WriteHeader(http.StatusMovedPermanently)
		r.svc.metrics.observe(r.api, "redirect", "301", 0)
		return
	}
	r.engine.ServeHTTP(t, req)
}

// cleanPath removes empty and dot segments. A slash at the end stays.
func cleanPath(p string) string {
	if p == "" {
		return "/"
	}
	clean := path.Clean("/" + p)
	if strings.HasSuffix(p, "/") && clean != "/" {
		clean += "/"
	}
	return clean
}

// guard measures each request and turns a panic into an answer of 500, or
// into a broken connection where an answer has begun.
func (r *router) guard(c *gin.Context) {
	began := time.Now()
	span := r.trace(c)
	defer func() {
		route, p := or(c.FullPath(), "none"), recover()
		if p != nil && p != http.ErrAbortHandler {
			r.svc.metrics.panics.Inc()
			r.svc.cfg.Log.Error("request panicked", "api", r.api, "route", route, "panic", p, "stack", string(debug.Stack()))
			if !c.Writer.Written() {
				plain(c.Writer, http.StatusInternalServerError, "internal error")
				p = nil
			}
		}
		code := strconv.Itoa(c.Writer.Status())
		if p != nil {
			code = "aborted"
		}
		r.svc.metrics.observe(r.api, route, code, time.Since(began))
		span.Answered(c.Writer.Status())
		if p != nil {
			span.Fail()
		}
		span.End(nil)
		if p != nil {
			panic(http.ErrAbortHandler)
		}
	}()
	c.Next()
}

// trace begins the span of a request. What does not exist is not named in it.
func (r *router) trace(c *gin.Context) *tracing.Span {
	t, route := r.svc.cfg.Bus.Trace, c.FullPath()
	if t == nil {
		return nil
	}
	var span *tracing.Span
	if route == "" {
		c.Request, span = t.Serve(c.Request, "none")
		return span
	}
	c.Request, span = t.Serve(c.Request, c.Request.Method+" "+route)
	span.Text("http.request.method", c.Request.Method)
	span.Text("http.route", route)
	if uuid := c.Param("uuid"); subject.IsUUID(uuid) {
		span.Endpoint(uuid)
	}
	return span
}

// forms answers 404 or 405 where a parameter does not have its form.
func (r *router) forms(c *gin.Context) {
	for _, p := range c.Params {
		if form, ok := parameterForms[p.Key]; ok && !form(p.Value) {
			r.missing(c)
			c.Abort()
			return
		}
	}
}

// missing answers for what does not exist: 405 where the path exists with
// another method, otherwise 404.
func (r *router) missing(c *gin.Context) {
	for _, rt := range r.routes {
		if matches(rt.path, c.Request.URL.Path) {
			c.Writer.Header().Del("Allow")
			c.Writer.WriteHeader(http.StatusMethodNotAllowed)
			c.Writer.WriteHeaderNow()
			return
		}
	}
	c.Writer.Header().Del("Allow")
	plain(c.Writer, http.StatusNotFound, "404 page not found")
}

// matches tells whether a path is one of a route's.
func matches(pattern, p string) bool {
	for {
		want, patternRest, more := strings.Cut(pattern, "/")
		have, pRest, pMore := strings.Cut(p, "/")
		if name, isParameter := strings.CutPrefix(want, ":"); isParameter {
			if form, ok := parameterForms[name]; have == "" || ok && !form(have) {
				return false
			}
		} else if want != have {
			return false
		}
		if !more || !pMore {
			return more == pMore
		}
		pattern, p = patternRest, pRest
	}
}
