package target

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/nightjar-edr/nightjar/services/siem-forwarder/internal/format"
)

// Record is an encoded alert.
type Record struct {
	// ID is the same whenever the alert is sent.
	ID string
	// Body is the alert in its format, one line without its end. Short
	// returns it in a shorter form, without the event as it came.
	Body  []byte
	Short func() ([]byte, error)
	// Time is the event's, Host names the endpoint, IP is its address or
	// empty.
	Time     time.Time
	Host, IP string
	// Criticality is from 0 to 10.
	Criticality int
	Severity    string
}

// Target takes records. It is used by one goroutine.
type Target interface {
	// Send hands records over in their order. The result has an element for
	// each: nil when it is taken, *Refused when it never will be, any other
	// error, *Later among them, when it is to be sent again.
	Send(ctx context.Context, records []Record) []error
	// Close gives back what the target holds.
	Close() error
}

// Refused means that the target does not take this record, however often it is
// sent.
type Refused struct{ Reason string }

// Error returns the target's reason.
func (r *Refused) Error() string { return "refused: " + r.Reason }

// Later means that the target asked to wait.
type Later struct {
	// After is how long it asked to wait.
	After time.Duration
	Err   error
}

// Error returns the reason to wait.
func (l *Later) Error() string { return l.Err.Error() }

// Unwrap returns the reason to wait.
func (l *Later) Unwrap() error { return l.Err }

// all returns one result for n records.
func all(n int, err error) []error {
	out := make([]error, n)
	for i := range out {
		out[i] = err
	}
	return out
}

// Kinds of HTTP endpoints.
const (
	Splunk  = "splunk-hec"
	Elastic = "elasticsearch-bulk"
	Plain   = "plain"
)

// DefaultSyslogBytes is the largest syslog message that is sent unless asked
// for another limit.
const DefaultSyslogBytes = 64 << 10

// Options choose a target.
type Options struct {
	// Output is stdout, the path of a file, or an address with the scheme
	// syslog+tcp, syslog+tls, http or https.
	Output string
	Format format.Format
	// Webhook is the kind of an HTTP endpoint: Splunk, Elastic or Plain.
	Webhook string
	// Index is the index or data stream for Elastic.
	Index string
	// TokenFile holds the credentials for an HTTP endpoint. It is read for
	// every request, so a token can be replaced.
	TokenFile string
	// CAFile is a PEM file with the authority that the target's certificate
	// is checked against; empty for the system's.
	CAFile string
	// CertFile and KeyFile are the certificate that is shown to the target.
	CertFile, KeyFile string
	// SyslogBytes bounds a syslog message; 0 means DefaultSyslogBytes.
	SyslogBytes int
	// Timeout bounds each exchange with the target.
	Timeout time.Duration
	// Shortened is called for each record that was shortened to fit.
	Shortened func()
}

// Open opens a target. An error is one of the options: a network target is
// not connected to before the first Send.
func Open(o Options) (Target, error) {
	if o.Output == "stdout" {
		return newStdout(), nil
	}
	scheme, _, ok := strings.Cut(o.Output, "://")
	if !ok {
		return openFile(o.Output)
	}
	u, err := url.Parse(o.Output)
	if err != nil {
		return nil, fmt.Errorf("output: %w", err)
	}
	if u.User != nil {
		return nil, errors.New("output: credentials belong into the token file, not into the address")
	}
	config, err := o.tls(u.Hostname())
	if err != nil {
		return nil, err
	}
	switch scheme {
	case "syslog+tcp", "syslog+tls":
		if _, _, err := net.SplitHostPort(u.Host); err != nil || u.Path != "" {
			return nil, fmt.Errorf("output %q: want %s://host:port", o.Output, scheme)
		}
		if scheme == "syslog+tcp" {
			config = nil
		}
		return newSyslog(u.Host, config, o), nil
	case "http", "https":
		return newWebhook(u, config, o)
	}
	return nil, fmt.Errorf("output %q: want stdout, a file, syslog+tls://host:port, syslog+tcp://host:port or an https address", o.Output)
}

func (o *Options) tls(host string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("output-ca: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("output-ca %s: no certificate in it", o.CAFile)
		}
	}
	if o.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("output-cert: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}
