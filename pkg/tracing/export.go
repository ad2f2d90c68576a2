package tracing

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/nightjar-edr/nightjar/pkg/config"
)

const (
	// tracesPath is where collectors take traces (OTLP 1.x, section OTLP/HTTP
	// Request).
	tracesPath = "/v1/traces"
	// exportEvery is how long spans wait for others.
	exportEvery = 2 * time.Second
	// exportTimeout is how long the collector may take, stopTimeout how long
	// what is left may take at the end.
	exportTimeout = 10 * time.Second
	stopTimeout   = 3 * time.Second
	// tellEvery is how often a collector that takes nothing is logged.
	tellEvery = time.Minute
)

// Options choose whether and which traces are made.
type Options struct {
	// Endpoint is the address of a collector for OTLP/HTTP; empty for none.
	Endpoint string
	// Ratio is the part, from 0 to 1, of the traces begun here that are
	// recorded.
	Ratio float64
	// Trust goes on with traces that clients say they belong to.
	Trust bool
	Log   *slog.Logger
}

// AddFlags adds --trace-endpoint, --trace-ratio and --trace-trust and returns
// the options that they fill.
func AddFlags(fs *flag.FlagSet) *Options {
	o := &Options{}
	fs.StringVar(&o.Endpoint, "trace-endpoint", "", "address of an OpenTelemetry collector for traces, OTLP over HTTP, such as http://collector:4318; unset: no traces")
	fs.Float64Var(&o.Ratio, "trace-ratio", 1, "part of the traces begun here that are recorded, from 0 to 1")
	fs.BoolVar(&o.Trust, "trace-trust", false, "go on with the traces that clients of the APIs say they belong to, and with their choice of what is recorded")
	config.Check(fs, "trace-endpoint", func() error {
		if o.Endpoint == "" {
			return nil
		}
		_, err := o.url()
		return err
	})
	config.Check(fs, "trace-ratio", func() error {
		if !(o.Ratio >= 0 && o.Ratio <= 1) {
			return errors.New("want 0 to 1")
		}
		return nil
	})
	return o
}

// url returns where traces are sent.
func (o *Options) url() (string, error) {
	u, err := url.Parse(o.Endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.User != nil {
		return "", errors.New("want http://HOST:PORT or https://HOST:PORT")
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = tracesPath
	}
	return u.String(), nil
}

// Exporter hands the spans of a process to a collector. A nil Exporter is one
// of a process that makes none.
type Exporter struct {
	opts      Options
	exporter  *otlptrace.Exporter
	mu        sync.Mutex
	providers []*sdktrace.TracerProvider
	told      time.Time
}

// Open returns the exporter that o asks for, nil for none. It connects to
// nobody: a collector that is away costs spans and nothing else.
func Open(o Options) (*Exporter, error) {
	if o.Endpoint == "" {
		return nil, nil
	}
	address, err := o.url()
	if err != nil {
		return nil, fmt.Errorf("trace-endpoint %q: %w", o.Endpoint, err)
	}
	e := &Exporter{opts: o}
	e.exporter = otlptrace.NewUnstarted(&collector{url: address, http: &http.Client{Timeout: exportTimeout}})
	otel.SetErrorHandler(otel.ErrorHandlerFunc(e.tell))
	return e, nil
}

// Tracer returns the tracer of a service.
func (e *Exporter) Tracer(service string) *Tracer {
	if e == nil {
		return nil
	}
	p := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(e.exporter, sdktrace.WithBatchTimeout(exportEvery), sdktrace.WithExportTimeout(exportTimeout)),
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(e.opts.Ratio))),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", service), attribute.String("service.namespace", "nightjar"))),
	)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.providers = append(e.providers, p)
	return &Tracer{tracer: p.Tracer("github.com/nightjar-edr/nightjar/pkg/tracing"), trust: e.opts.Trust}
}

// Close hands over what is left, for a few seconds at most.
func (e *Exporter) Close() {
	if e == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	e.mu.Lock()
	providers := e.providers
	e.mu.Unlock()
	var err error
	for _, p := range providers {
		err = errors.Join(err, p.ForceFlush(ctx))
	}
	for _, p := range providers {
		err = errors.Join(err, p.Shutdown(ctx))
	}
	if err != nil {
		e.tell(err)
	}
}

// tell logs what the exporter could not do, once in a while.
func (e *Exporter) tell(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if time.Since(e.told) < tellEvery {
		return
	}
	e.told = time.Now()
	e.opts.Log.Warn("traces not handed over", "endpoint", e.opts.Endpoint, "error", err)
}

// collector is an otlptrace.Client for OTLP/HTTP. The one that OpenTelemetry
// has links gRPC for the sake of a message type.
type collector struct {
	url  string
	http *http.Client
}

// Start implements otlptrace.Client.
func (c *collector) Start(context.Context) error { return nil }

// Stop implements otlptrace.Client.
func (c *collector) Stop(context.Context) error {
	c.http.CloseIdleConnections()
	return nil
}

// UploadTraces implements otlptrace.Client. TracesData is on the wire what
// ExportTraceServiceRequest is.
func (c *collector) UploadTraces(ctx context.Context, spans []*tracepb.ResourceSpans) error {
	body, err := proto.Marshal(&tracepb.TracesData{ResourceSpans: spans})
	if err != nil {
		return fmt.Errorf("encode traces: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-protobuf")
	res, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10)); err != nil {
		return err
	}
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("collector: %s", res.Status)
	}
	return nil
}
