package tracing

import (
	"context"
	"net/http"
	"time"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// Header is the header of a trace context, in HTTP and in NATS messages.
const Header = "traceparent"

// Kind says on which side of an exchange a span stands.
type Kind = trace.SpanKind

// The kinds.
const (
	Internal = trace.SpanKindInternal
	Server   = trace.SpanKindServer
	Client   = trace.SpanKindClient
	Producer = trace.SpanKindProducer
	Consumer = trace.SpanKindConsumer
)

// Tracer makes the spans of a service. A nil Tracer makes none. It is safe for
// concurrent use.
type Tracer struct {
	tracer trace.Tracer
	trust  bool
}

// Span is one span in the making. A nil Span, which is what a nil Tracer gives,
// does nothing. Its methods are for one goroutine at a time.
type Span struct{ span trace.Span }

// propagator reads and writes trace contexts, and no baggage: what comes from
// outside is not carried on.
var propagator propagation.TraceContext

// Start begins a span, a child of that in ctx, and returns ctx with it.
func (t *Tracer) Start(ctx context.Context, name string, kind Kind) (context.Context, *Span) {
	if t == nil {
		return ctx, nil
	}
	ctx, span := t.tracer.Start(ctx, name, trace.WithSpanKind(kind))
	return ctx, &Span{span}
}

// Child is Start where ctx has a span that is recorded; elsewhere there is
// nothing to be a part of, and no span.
func (t *Tracer) Child(ctx context.Context, name string, kind Kind) (context.Context, *Span) {
	if t == nil || !trace.SpanContextFromContext(ctx).IsSampled() {
		return ctx, nil
	}
	return t.Start(ctx, name, kind)
}

// Serve begins the span of an HTTP request. The trace that the client says it
// belongs to is gone on with only where clients are trusted in that.
func (t *Tracer) Serve(r *http.Request, name string) (*http.Request, *Span) {
	if t == nil {
		return r, nil
	}
	ctx := r.Context()
	if t.trust {
		ctx = propagator.Extract(ctx, propagation.HeaderCarrier(r.Header))
	}
	ctx, span := t.Start(ctx, name, Server)
	return r.WithContext(ctx), span
}

// carrier gives a single trace context to propagator.
type carrier string

func (c *carrier) Get(key string) string {
	if key == Header {
		return string(*c)
	}
	return ""
}

func (c *carrier) Set(key, value string) {
	if key == Header {
		*c = carrier(value)
	}
}

func (c *carrier) Keys() []string { return []string{Header} }

// remote returns the context that a trace context names.
func remote(ctx context.Context, parent string) context.Context {
	c := carrier(parent)
	return propagator.Extract(ctx, &c)
}

// Continue begins a span that goes on with what another service has begun.
// parent is the trace context that came with the message. A trace that is not
// recorded there is not recorded here.
func (t *Tracer) Continue(ctx context.Context, parent, name string, kind Kind) (context.Context, *Span) {
	if t == nil || parent == "" {
		return ctx, nil
	}
	return t.Child(remote(ctx, parent), name, kind)
}

// maxLinks bounds the links of a span.
const maxLinks = 128

// Join begins a span for work on many messages at once: the child of the first
// that is recorded, with a link to each other one. There is no span when none
// is. parent returns the trace context of message i of n.
func (t *Tracer) Join(ctx context.Context, n int, parent func(i int) string, name string) *Span {
	if t == nil {
		return nil
	}
	var first trace.SpanContext
	var links []trace.Link
	for i := 0; i < n && len(links) < maxLinks; i++ {
		sc := trace.SpanContextFromContext(remote(ctx, parent(i)))
		switch {
		case !sc.IsSampled() || sc.Equal(first):
		case !first.IsValid():
			first = sc
		default:
			links = append(links, trace.Link{SpanContext: sc})
		}
	}
	if !first.IsValid() {
		return nil
	}
	_, span := t.tracer.Start(trace.ContextWithRemoteSpanContext(ctx, first), name, trace.WithSpanKind(Consumer), trace.WithLinks(links...))
	return &Span{span}
}

// Since records a span that began in the past and ends now, a part of the
// trace that parent names.
func (t *Tracer) Since(parent, name string, began time.Time) *Span {
	if t == nil || parent == "" {
		return nil
	}
	ctx := remote(context.Background(), parent)
	if !trace.SpanContextFromContext(ctx).IsSampled() {
		return nil
	}
	_, span := t.tracer.Start(ctx, name, trace.WithTimestamp(began))
	return &Span{span}
}

// Parent returns the trace context of the span, for a message that belongs to
// it; "" for a nil span.
func (s *Span) Parent() string {
	if s == nil {
		return ""
	}
	return Parent(trace.ContextWithSpan(context.Background(), s.span))
}

// Parent returns the trace context of the span in ctx, "" when there is none.
func Parent(ctx context.Context) string {
	if !trace.SpanContextFromContext(ctx).IsValid() {
		return ""
	}
	var c carrier
	propagator.Inject(ctx, &c)
	return string(c)
}

// Endpoint says of the span in ctx for which endpoint the work is done.
func (t *Tracer) Endpoint(ctx context.Context, uuid string) {
	if t != nil {
		(&Span{trace.SpanFromContext(ctx)}).Endpoint(uuid)
	}
}

// Inject puts the trace context of the span into the header of a message.
func (s *Span) Inject(h nats.Header) {
	if s != nil {
		h.Set(Header, s.Parent())
	}
}

// Endpoint says for which endpoint the work was done.
func (s *Span) Endpoint(uuid string) { s.Text("nightjar.endpoint", uuid) }

// Answered says with which status an HTTP request was answered, of which 500
// and above are failures.
func (s *Span) Answered(status int) {
	s.Count("http.response.status_code", status)
	if status >= http.StatusInternalServerError {
		s.Fail()
	}
}

// Text sets an attribute. It must not be what is secret or comes from outside.
func (s *Span) Text(name, value string) {
	if s != nil && value != "" {
		s.span.SetAttributes(attribute.String(name, value))
	}
}

// Count sets an attribute that is a number.
func (s *Span) Count(name string, n int) {
	if s != nil {
		s.span.SetAttributes(attribute.Int(name, n))
	}
}

// Event notes that something happened at a time.
func (s *Span) Event(name string, at time.Time) {
	if s != nil {
		s.span.AddEvent(name, trace.WithTimestamp(at))
	}
}

// Fail marks the span as one of work that failed.
func (s *Span) Fail() {
	if s != nil {
		s.span.SetStatus(codes.Error, "")
	}
}

// End ends the span, as failed when err is not nil. What err says stays out of
// it.
func (s *Span) End(err error) {
	if s == nil {
		return
	}
	if err != nil {
		s.Fail()
	}
	s.span.End()
}
