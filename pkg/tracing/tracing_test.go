package tracing_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/nightjar-edr/nightjar/pkg/config"
	"github.com/nightjar-edr/nightjar/pkg/testlog"
	"github.com/nightjar-edr/nightjar/pkg/tracing"
	"github.com/nightjar-edr/nightjar/pkg/tracing/tracetest"
)

const (
	recorded   = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	unrecorded = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
)

// open returns an exporter that hands over to the collector what it has when
// done is called.
func open(t *testing.T, c *tracetest.Collector, o tracing.Options) (e *tracing.Exporter, done func()) {
	t.Helper()
	o.Endpoint, o.Log = c.URL, slog.New(slog.NewTextHandler(io.Discard, nil))
	e, err := tracing.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return e, e.Close
}

// off does all that a tracer and a span can do.
func off(ctx context.Context, t *tracing.Tracer, r *http.Request, parent func(int) string, h nats.Header) {
	ctx, s := t.Start(ctx, "name", tracing.Internal)
	ctx, child := t.Child(ctx, "name", tracing.Client)
	ctx, far := t.Continue(ctx, recorded, "name", tracing.Server)
	_, served := t.Serve(r, "name")
	t.Endpoint(ctx, "endpoint")
	joined, past := t.Join(ctx, 2, parent, "name"), t.Since(recorded, "name", time.Time{})
	for _, s := range []*tracing.Span{s, child, far, served, joined, past} {
		s.Endpoint("endpoint")
		s.Text("name", "value")
		s.Count("name", 1)
		s.Answered(500)
		s.Event("name", time.Time{})
		s.Inject(h)
		s.Fail()
		s.End(nil)
	}
}

// Without an endpoint there is nothing, and nothing is what it costs.
func TestOff(t *testing.T) {
	defer goleak.VerifyNone(t)
	e, err := tracing.Open(tracing.Options{Ratio: 1})
	if err != nil {
		t.Fatal(err)
	}
	tracer := e.Tracer("service")
	if e != nil || tracer != nil {
		t.Fatalf("%v, %v", e, tracer)
	}
	ctx, r, h := t.Context(), httptest.NewRequest(http.MethodGet, "/", nil), nats.Header{}
	parent := func(int) string { return recorded }
	if n := testing.AllocsPerRun(100, func() { off(ctx, tracer, r, parent, h) }); n != 0 || len(h) != 0 {
		t.Errorf("%g allocations, header %v", n, h)
	}
	e.Close()
}

func BenchmarkOff(b *testing.B) {
	ctx, r, h := b.Context(), httptest.NewRequest(http.MethodGet, "/", nil), nats.Header{}
	parent := func(int) string { return recorded }
	b.ReportAllocs()
	for b.Loop() {
		off(ctx, nil, r, parent, h)
	}
}

// What belongs together is one trace, across services.
func TestOneTrace(t *testing.T) {
	c := tracetest.Start(t)
	e, done := open(t, c, tracing.Options{Ratio: 1})
	door, engine := e.Tracer("door"), e.Tracer("engine")
	r, span := door.Serve(httptest.NewRequest(http.MethodPost, "/logs", nil), "POST /logs")
	door.Endpoint(r.Context(), "the-endpoint")
	ctx, publish := door.Child(r.Context(), "publish", tracing.Producer)
	if got := tracing.Parent(ctx); got != publish.Parent() || !strings.HasSuffix(got, "-01") {
		t.Errorf("trace context %q, of the span %q", got, publish.Parent())
	}
	m := nats.NewMsg("subject")
	publish.Inject(m.Header)
	publish.End(nil)
	span.Answered(http.StatusServiceUnavailable)
	span.End(nil)
	_, detect := engine.Continue(t.Context(), m.Header.Get(tracing.Header), "detect", tracing.Consumer)
	detect.Count("nightjar.alerts", 3)
	detect.End(errors.New("secret"))
	parents := []string{"", "nonsense", unrecorded, m.Header.Get(tracing.Header), detect.Parent(), m.Header.Get(tracing.Header), recorded}
	engine.Join(t.Context(), len(parents), func(i int) string { return parents[i] }, "fold").End(nil)
	engine.Since(detect.Parent(), "command", time.Now().Add(-time.Minute)).End(nil)
	if engine.Join(t.Context(), 3, func(i int) string { return parents[i] }, "fold") != nil {
		t.Error("a span for what is recorded nowhere")
	}
	done()

	spans := map[string]tracetest.Span{}
	for _, s := range c.Spans() {
		spans[s.Name] = s
		if strings.Contains(fmt.Sprintf("%+v", s), "secret") {
			t.Errorf("an error's text is in %+v", s)
		}
	}
	if len(spans) != 5 || len(c.Trace(spans["fold"].Trace)) != 5 {
		t.Fatalf("spans %+v", c.Spans())
	}
	for name, want := range map[string]tracetest.Span{
		"POST /logs": {Service: "door", Failed: true},
		"publish":    {Service: "door", Parent: spans["POST /logs"].ID},
		"detect":     {Service: "engine", Parent: spans["publish"].ID, Failed: true},
		"fold":       {Service: "engine", Parent: spans["publish"].ID, Links: []string{spans["detect"].ID, "b7ad6b7169203331"}},
		"command":    {Service: "engine", Parent: spans["detect"].ID},
	} {
		if got := spans[name]; got.Service != want.Service || got.Parent != want.Parent || got.Failed != want.Failed || !slices.Equal(got.Links, want.Links) {
			t.Errorf("%s is %+v, want %+v", name, got, want)
		}
	}
	if a := spans["POST /logs"].Attributes; a["nightjar.endpoint"] != "the-endpoint" || a["http.response.status_code"] != "503" {
		t.Errorf("attributes %v", a)
	}
	if a := spans["detect"].Attributes; a["nightjar.alerts"] != "3" {
		t.Errorf("attributes %v", a)
	}
}

// A trace that somebody outside says they are part of, and wants to have
// recorded, counts for nothing unless that is asked for.
func TestTrust(t *testing.T) {
	for _, trust := range []bool{false, true} {
		c := tracetest.Start(t)
		e, done := open(t, c, tracing.Options{Trust: trust}) // ratio 0
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("Traceparent", recorded)
		r, span := e.Tracer("door").Serve(r, "GET /")
		_, child := e.Tracer("door").Child(r.Context(), "ask", tracing.Client)
		child.End(nil)
		span.End(nil)
		done()
		if n := len(c.Trace("0af7651916cd43dd8448eb211c80319c")); n != len(c.Spans()) || (n == 2) != trust || (child != nil) != trust {
			t.Errorf("trust %v: spans %+v", trust, c.Spans())
		}
		if !trust && strings.Contains(tracing.Parent(r.Context()), "0af7651916cd43dd8448eb211c80319c") {
			t.Error("a foreign trace goes on")
		}
	}
}

// A collector that is away or refuses costs spans, is told of once in a while,
// and holds up nothing.
func TestCollectorAway(t *testing.T) {
	refusing := httptest.NewServer(http.NotFoundHandler())
	defer refusing.Close()
	for _, url := range []string{"http://127.0.0.1:1", refusing.URL} {
		var log testlog.Log
		e, err := tracing.Open(tracing.Options{Endpoint: url, Ratio: 1, Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		tracer := e.Tracer("service")
		for range 10_000 {
			_, s := tracer.Start(t.Context(), "name", tracing.Internal)
			s.End(nil)
		}
		e.Close()
		if n := strings.Count(log.String(), "traces not handed over"); n != 1 || !strings.Contains(log.String(), url) {
			t.Errorf("log of %s:\n%s", url, log.String())
		}
	}
}

func TestFlags(t *testing.T) {
	for args, usable := range map[string]bool{
		"": true, "--trace-endpoint=": true, "--trace-endpoint=http://collector:4318": true, "--trace-endpoint=https://collector/otlp/v1/traces --trace-ratio=0.5 --trace-trust": true,
		"--trace-endpoint=collector:4318": false, "--trace-endpoint=grpc://collector:4317": false, "--trace-endpoint=http://user:key@collector": false,
		"--trace-ratio=1.5": false, "--trace-ratio=-1": false, "--trace-ratio=NaN": false,
	} {
		fs := config.NewFlagSet("test", "", io.Discard)
		tracing.AddFlags(fs)
		if err := config.Parse(fs, strings.Fields(args)); (err == nil) != usable {
			t.Errorf("%s: %v", args, err)
		}
	}
	if _, err := tracing.Open(tracing.Options{Endpoint: "collector"}); err == nil || !strings.Contains(err.Error(), "trace-endpoint") {
		t.Errorf("unusable endpoint: %v", err)
	}
}

// What has no trace has no trace context.
func TestNoParent(t *testing.T) {
	if tracing.Parent(t.Context()) != "" {
		t.Error("a trace context without a trace")
	}
}
