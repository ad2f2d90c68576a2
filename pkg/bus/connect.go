package bus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/tracing"
)

// A server that is gone without a word, such as a host that lost its power, is
// noticed by pings that stay unanswered, after at most 30 seconds.
const (
	pingInterval = 10 * time.Second
	maxPings     = 2
)

// ErrOptions means that Options cannot be used, whatever the servers do.
var ErrOptions = errors.New("unusable options")

// Options choose how a service connects.
type Options struct {
	// Service is the name of the service, shown by the server and part of
	// the private inbox prefix.
	Service string
	// URL of the servers, comma-separated; unused when InProcess is set.
	URL string
	// SeedFile is a file with the service's NKey seed; Seed is the seed
	// itself. One of them.
	SeedFile string
	Seed     []byte
	// CAFile is a PEM file with the certificate authority of the servers.
	CAFile string
	// InProcess connects to an embedded server.
	InProcess nats.InProcessConnProvider
	// Trace makes the service's spans; nil for none.
	Trace *tracing.Tracer
	Log   *slog.Logger
}

// Bus is a connection to NATS with JetStream.
type Bus struct {
	NC *nats.Conn
	JS jetstream.JetStream
	// Trace makes the service's spans; nil for none.
	Trace *tracing.Tracer
	// Log is the service's logger.
	Log *slog.Logger

	stop func() // ends what watches the connection; nil where nothing does
}

// Connect connects to NATS and goes on trying when the connection is lost. A
// first connection that fails is an error, one that wraps ErrOptions when a
// file or seed of o cannot be used.
func Connect(o Options) (*Bus, error) {
	opts := []nats.Option{
		nats.Name("nightjar-" + o.Service),
		nats.CustomInboxPrefix(access.InboxPrefix(o.Service)),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(200 * time.Millisecond),
		nats.ReconnectJitter(100*time.Millisecond, 500*time.Millisecond),
		nats.RetryOnFailedConnect(false),
		nats.PingInterval(pingInterval),
		nats.MaxPingsOutstanding(maxPings),
		nats.ReconnectBufSize(-1), // fail at once instead of pretending
		nats.ErrorHandler(func(_ *nats.Conn, s *nats.Subscription, err error) {
			subj := ""
			if s != nil {
				subj = s.Subject
			}
			o.Log.Error("nats", "error", err, "subject", subj)
		}),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				o.Log.Warn("nats connection lost", "error", err)
			}
		}),
		nats.ReconnectHandler(func(c *nats.Conn) { o.Log.Info("nats connection is back", "url", c.ConnectedUrlRedacted()) }),
	}
	switch {
	case o.SeedFile != "":
		nk, err := nats.NkeyOptionFromSeed(o.SeedFile)
		if err != nil {
			return nil, fmt.Errorf("%w: nats nkey %s: %w", ErrOptions, o.SeedFile, err)
		}
		opts = append(opts, nk)
	case len(o.Seed) > 0:
		nk, err := access.NKeyOption(o.Seed)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrOptions, err)
		}
		opts = append(opts, nk)
	}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("%w: nats ca: %w", ErrOptions, err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%w: nats ca %s: no certificate in it", ErrOptions, o.CAFile)
		}
		opts = append(opts, nats.Secure(&tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}))
	}
	if o.InProcess != nil { // which ends with this process and not before
		opts = append(opts, nats.InProcessServer(o.InProcess), nats.PingInterval(nats.DefaultPingInterval))
	}
	nc, err := nats.Connect(o.URL, opts...)
	if err != nil {
		return nil, fmt.Errorf("connect to nats %s: %w", o.URL, err)
	}
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(10*time.Second), jetstream.WithPublishAsyncMaxPending(4096))
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("jetstream: %w", err)
	}
	b := &Bus{NC: nc, JS: js, Trace: o.Trace, Log: o.Log}
	if o.InProcess == nil && mayAsk(o.Service) {
		ctx, cancel := context.WithCancel(context.Background())
		var watching sync.WaitGroup
		watching.Go(func() { b.leaveCutOff(ctx) })
		b.stop = func() { cancel(); watching.Wait() }
	}
	return b, nil
}

// Close ends the connection, after what was handed to it is sent.
func (b *Bus) Close() {
	if b.stop != nil {
		b.stop()
	}
	if b.NC.IsConnected() {
		if err := b.NC.FlushTimeout(2 * time.Second); err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
			b.Log.Warn("nats flush", "error", err)
		}
	}
	b.NC.Close()
}

// Ready tells whether the connection stands.
func (b *Bus) Ready() error {
	if !b.NC.IsConnected() {
		return errors.New("no connection to nats")
	}
	return nil
}
