package gateway

import (
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/config"
	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/pkg/contract/stream"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

// Defaults of Config.
const (
	DefaultMaxInflated     = 2 << 30
	DefaultIngestMemory    = 192 << 20
	DefaultUnacked         = 64 << 20
	DefaultAdminRequests   = 256
	DefaultAgentRequests   = 16384
	DefaultProgressTimeout = time.Minute
	DefaultMaxCommandFiles = 64 << 30
)

// Config is what a gateway needs. The zero value of each setting but Env and
// the listeners means its default.
type Config struct {
	lifecycle.Env

	// AdminListener and AgentListener are listened on; when one is nil,
	// AdminAddr or AgentAddr is opened instead.
	AdminListener, AgentListener net.Listener
	AdminAddr, AgentAddr         string
	// TLS is for both listeners; nil means plain HTTP.
	TLS *tls.Config

	// AdminKey is the key of the operator admin, who is created or given
	// this key. Without it, and when there is no operator at all, a key is
	// generated and told once to OnAdminKey.
	AdminKey   string
	OnAdminKey func(key string)
	// Operators are operators of another manager, taken over with the key
	// they have before the first request is answered. Those that exist are
	// left alone, and those that have been deleted stay so.
	Operators []Operator
	// ServerKey is what agents are answered on GET /key. Without it one is
	// generated once.
	ServerKey string

	// Alone tells that no other gateway is or comes on the same NATS, as in
	// standalone. It then tells nobody how far it is, and asks nobody.
	Alone bool

	// Events, DeadLetters and Audit limit the streams that the gateway owns.
	// Their Replicas are taken from Env. Events are not removed before the
	// rule-engine has looked at them.
	Events, DeadLetters, Audit stream.Limits

	// MaxInflated bounds the inflated size of a gzip body in bytes.
	MaxInflated int64
	// IngestMemory bounds, in bytes, the buffers of all POST /logs requests
	// together; Unacked the published messages that wait for their
	// acknowledgement.
	IngestMemory, Unacked int64
	// IngestWorkers is how many POST /logs requests may use a CPU at once.
	// By default one CPU is left to everything else.
	IngestWorkers int
	// AdminRequests and AgentRequests bound the requests worked on at once.
	AdminRequests, AgentRequests int
	// ProgressTimeout is how long a transfer may stand still.
	ProgressTimeout time.Duration
	// MaxCommandFiles is how many bytes the values of commands may have that
	// are kept as files; beyond it commands and results with more are refused.
	// What is uploaded at that moment may pass it.
	MaxCommandFiles int64
	// DropDir is the only folder from which files are dropped on endpoints;
	// by default the folder drop within DataDir.
	DropDir string
	// Full, if not nil, tells why nothing can be stored at the moment. It
	// must be cheap and safe for concurrent use. By default it is Room.
	Full func() error
	// seenAgain is how often the registry is told of all endpoints that were
	// heard of.
	seenAgain time.Duration
}

// Operator is who may use the admin API, and with which key.
type Operator struct{ Identifier, Key string }

func (c *Config) setDefaults() {
	c.MaxInflated = or(c.MaxInflated, DefaultMaxInflated)
	c.IngestMemory = max(or(c.IngestMemory, DefaultIngestMemory), minIngestMemory)
	c.Unacked = max(or(c.Unacked, DefaultUnacked), stream.MaxMessage)
	c.IngestWorkers = or(c.IngestWorkers, max(1, runtime.GOMAXPROCS(0)-1))
	c.AdminRequests = or(c.AdminRequests, DefaultAdminRequests)
	c.AgentRequests = or(c.AgentRequests, DefaultAgentRequests)
	c.ProgressTimeout = or(c.ProgressTimeout, DefaultProgressTimeout)
	c.MaxCommandFiles = or(c.MaxCommandFiles, DefaultMaxCommandFiles)
	c.DropDir = or(c.DropDir, filepath.Join(c.DataDir, "drop"))
	c.seenAgain = or(c.seenAgain, seenAgain)
	if c.Full == nil {
		c.Full = c.Room
	}
	if c.Full == nil {
		c.Full = func() error { return nil }
	}
	for _, l := range []*stream.Limits{&c.Events, &c.DeadLetters, &c.Audit} {
		l.Replicas = or(l.Replicas, c.Replicas)
	}
}

// or returns v, or def where v is zero.
func or[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// Flags adds the gateway's own flags to fs.
func Flags(fs *flag.FlagSet) func(lifecycle.Env) (lifecycle.Component, error) {
	var c Config
	day := config.Duration(24 * time.Hour)
	events, letters, audit := 30*day, 30*day, 365*day
	var eventsSize, maxEvents, maxLetters config.Bytes
	inflated, files := config.Bytes(DefaultMaxInflated), config.Bytes(DefaultMaxCommandFiles)
	fs.StringVar(&c.AdminAddr, "admin-addr", "127.0.0.1:8001", "address of the admin API")
	fs.StringVar(&c.AgentAddr, "agent-addr", "127.0.0.1:8000", "address of the agent API")
	fs.StringVar(&c.DropDir, "drop-dir", "", "the only folder from which drop-files may be read; unset: <data-dir>/drop")
	cert := fs.String("tls", "off", "CERT,KEY: PEM files for both APIs; or off")
	fs.StringVar(&c.AdminKey, "admin-key", "", "key of the operator admin; unset: generated at the first start and printed once")
	keyFile := fs.String("admin-key-file", "", "file that holds --admin-key; read at start, unless that is set")
	fs.StringVar(&c.ServerKey, "server-key", "", "what GET /key answers; unset: generated once")
	fs.Var(&events, "retention-events", "how long events are kept, 0 for ever")
	fs.Var(&eventsSize, "retention-events-size", "bytes of events that are kept, such as 50GiB; the oldest go beyond")
	fs.Var(&letters, "retention-deadletters", "how long dead letters are kept, 0 for ever")
	fs.Var(&audit, "retention-audit", "how long the audit trail is kept, 0 for ever")
	fs.Var(&maxEvents, "max-events", "bytes that the stream of events may have; ingest is refused beyond")
	fs.Var(&maxLetters, "max-deadletters", "bytes that the stream of dead letters may have; ingest is refused beyond")
	fs.Var(&inflated, "max-inflated", "bytes that a gzip body may inflate to")
	config.Check(fs, "retention-events-size", func() error { return config.CheckBelow(eventsSize, "max-events", maxEvents) })
	config.Check(fs, "admin-addr", func() error { return config.CheckAddress(c.AdminAddr) })
	config.Check(fs, "agent-addr", func() error { return config.CheckAddress(c.AgentAddr) })
	config.Check(fs, "tls", func() (err error) { c.TLS, err = loadTLS(*cert); return err })
	fs.Var(&files, "max-command-files", "bytes that the files of all commands and results may have; more are refused beyond")
	return func(env lifecycle.Env) (lifecycle.Component, error) {
		c.Env = env
		if err := readAdminKey(&c.AdminKey, *keyFile); err != nil {
			return nil, err
		}
		c.MaxCommandFiles = int64(files)
		c.Events = stream.Limits{MaxAge: time.Duration(events), KeepBytes: int64(eventsSize), MaxBytes: int64(maxEvents)}
		c.DeadLetters = stream.Limits{MaxAge: time.Duration(letters), MaxBytes: int64(maxLetters)}
		c.Audit = stream.Limits{MaxAge: time.Duration(audit)}
		c.MaxInflated = int64(inflated)
		c.OnAdminKey = func(key string) {
			fmt.Fprintf(os.Stderr, "key of operator %s, shown only now: %s\n", adminOperator, key)
		}
		return New(c)
	}
}

// readAdminKey reads the key of the operator admin from a file, unless it is
// there or there is no file.
func readAdminKey(key *string, file string) error {
	if *key != "" || file == "" {
		return nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("%w: admin-key-file: %w", lifecycle.ErrUsage, err)
	}
	if *key = strings.TrimSpace(string(text)); *key == "" {
		return fmt.Errorf("%w: admin-key-file %s: it holds no key", lifecycle.ErrUsage, file)
	}
	return nil
}

// loadTLS reads the value of the flag tls.
func loadTLS(value string) (*tls.Config, error) {
	if value == "off" {
		return nil, nil
	}
	cert, key, found := strings.Cut(value, ",")
	if !found {
		return nil, errors.New("want off or CERT,KEY")
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}, nil
}

// minIngestMemory lets one request with the longest line through.
const minIngestMemory = 4*baseMemory + 2*message.MaxLine
