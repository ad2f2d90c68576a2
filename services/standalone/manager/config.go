package manager

import (
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"time"

	gateway "github.com/nightjar-edr/nightjar/services/api-gateway/service"
	dispatch "github.com/nightjar-edr/nightjar/services/command-dispatch/service"
	ingest "github.com/nightjar-edr/nightjar/services/log-ingest/service"

	"github.com/nightjar-edr/nightjar/pkg/config"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
	"github.com/nightjar-edr/nightjar/pkg/tracing"
)

// Config are the settings of a manager.
type Config struct {
	// DataDir is everything the manager writes.
	DataDir string
	// Addresses to listen on. NATSAddr may be off.
	AdminAddr, AgentAddr, NATSAddr, OpsAddr string
	// SIEMs are names of SIEMs, comma-separated.
	SIEMs string
	// TLS is auto, off or CERT,KEY.
	TLS string
	// AdminKey is the key of operator admin, ServerKey what GET /key
	// answers; both are generated when empty.
	AdminKey, ServerKey string
	// RulesDir is a folder of rules and templates to import.
	RulesDir string
	// ContainersDir is a folder of container files to import.
	ContainersDir string
	// ImportWHIDS is the configuration file of a WHIDS manager to take over.
	ImportWHIDS string
	// DropDir is the only folder from which drop-files are read.
	DropDir string
	// How long events and alerts are kept; 0 for ever.
	RetentionEvents, RetentionAlerts config.Duration
	// How many bytes of them; 0 for no bound.
	RetentionEventsSize, RetentionAlertsSize config.Bytes
	// MaxStore bounds all stores together, in bytes; 0 for no bound.
	MaxStore config.Bytes
	// MinFree is how many bytes of the file system of DataDir stay free, or a
	// fifth of it, whichever is less.
	MinFree config.Bytes
	// MaxCommandFiles bounds the files of commands, in bytes, MaxQueued the
	// commands of an endpoint that wait.
	MaxCommandFiles config.Bytes
	MaxQueued       int
	// CommandHistory is how many commands of an endpoint are kept beside those
	// that wait.
	CommandHistory int
	// MergeAfter is how long nothing must have come for an hour of an endpoint
	// until what is stored of it is merged.
	MergeAfter config.Duration
	Sync       config.Sync
	// Traces chooses the traces that are made; nil means none. New sets its
	// Log.
	Traces *tracing.Options
	Log    *slog.Logger
	// Notice is told, once, what a person who starts the manager for the
	// first time must know.
	Notice func(string)
}

// AddFlags adds the flags of standalone to fs and returns the configuration
// that they fill.
func AddFlags(fs *flag.FlagSet) *Config {
	day := config.Duration(24 * time.Hour)
	c := &Config{RetentionEvents: 30 * day, RetentionAlerts: 365 * day, Sync: config.Sync{Always: true}, MinFree: lifecycle.DefaultMinFree, MaxCommandFiles: gateway.DefaultMaxCommandFiles}
	fs.StringVar(&c.DataDir, "data-dir", "./data", "everything the manager writes: JetStream, a store for each service, the certificate")
	fs.StringVar(&c.AdminAddr, "admin-addr", "127.0.0.1:8001", "address of the admin API")
	fs.StringVar(&c.AgentAddr, "agent-addr", "127.0.0.1:8000", "address of the agent API")
	fs.StringVar(&c.NATSAddr, "nats-addr", "127.0.0.1:4222", "address of the embedded NATS server, for SIEMs; off to keep it in the process")
	fs.StringVar(&c.OpsAddr, "ops-addr", "127.0.0.1:8002", "address of /metrics, /healthz and /readyz, plain HTTP")
	fs.StringVar(&c.SIEMs, "siem", "siem", "names of SIEMs, comma-separated; each gets a NATS user (its seed in <data-dir>/<name>.nk) and a durable consumer")
	fs.StringVar(&c.TLS, "tls", "auto", "auto: a certificate made at the first start, its CA in <data-dir>/tls/ca.pem; off; or CERT,KEY")
	fs.StringVar(&c.AdminKey, "admin-key", "", "key of the operator admin; without it one is generated at the first start and printed once")
	fs.StringVar(&c.ServerKey, "server-key", "", "what GET /key answers; generated when not given")
	fs.StringVar(&c.RulesDir, "rules-dir", "", "folder of rules (.gen, .gene; gene v1 or v2) and templates (.toml, .tpl), imported at start")
	fs.StringVar(&c.ContainersDir, "containers-dir", "", "folder of container files, imported at start unless unchanged since their last import; a container's name is its file's up to the first dot")
	fs.StringVar(&c.ImportWHIDS, "import-whids", "", "a WHIDS manager's configuration file, taken over at start: endpoints and operators with their keys, the server key, rules and containers")
	fs.StringVar(&c.DropDir, "drop-dir", "", "the only folder from which drop-files may be read (default <data-dir>/drop)")
	fs.Var(&c.RetentionEvents, "retention-events", "how long events are kept; 0 for ever")
	fs.Var(&c.RetentionAlerts, "retention-alerts", "how long alerts are kept; 0 for ever")
	fs.Var(&c.RetentionEventsSize, "retention-events-size", "bytes of events that are kept in their stream, such as 20GiB; the oldest go beyond, once the rules have looked at them")
	fs.Var(&c.RetentionAlertsSize, "retention-alerts-size", "bytes of alerts that are kept in their stream, such as 5GiB; the oldest go beyond")
	fs.Var(&c.MaxStore, "max-store", "bytes that all stores together may use, such as 50GiB; ingest is refused before it is passed")
	config.Check(fs, "retention-events-size", func() error { return config.CheckBelow(c.RetentionEventsSize, "max-store", c.MaxStore) })
	config.Check(fs, "retention-alerts-size", func() error { return config.CheckBelow(c.RetentionAlertsSize, "max-store", c.MaxStore) })
	fs.Var(&c.MinFree, "min-free", "bytes of the file system of data-dir that stay free, at most a fifth of it; ingest is refused while fewer are")
	fs.Var(&c.MaxCommandFiles, "max-command-files", "bytes that the files of all commands and results may have; more are refused beyond")
	dispatch.AddBounds(fs, &c.CommandHistory, &c.MaxQueued)
	ingest.AddMergeAfter(fs, &c.MergeAfter)
	fs.Var(&c.Sync, "sync", "always: every acknowledgement is on stable storage; or an interval such as 10s, which a power cut may lose")
	c.Traces = tracing.AddFlags(fs)
	return c
}

// checkAddresses returns an error for an address that can never be listened on.
func (c *Config) checkAddresses() error {
	for _, a := range []struct{ flag, addr string }{
		{"admin-addr", c.AdminAddr}, {"agent-addr", c.AgentAddr}, {"nats-addr", c.NATSAddr}, {"ops-addr", c.OpsAddr},
	} {
		if a.flag == "nats-addr" && a.addr == "off" {
			continue
		}
		if err := config.CheckAddress(a.addr); err != nil {
			return fmt.Errorf("%s %q: %w", a.flag, a.addr, err)
		}
	}
	return nil
}

// hosts returns the names that an automatic certificate is for.
func (c *Config) hosts() []string {
	hosts := []string{"localhost", "127.0.0.1", "::1"}
	if name, err := os.Hostname(); err == nil && name != "" {
		hosts = append(hosts, name)
	}
	for _, addr := range []string{c.AdminAddr, c.AgentAddr, c.NATSAddr} {
		host, _, err := net.SplitHostPort(addr)
		if err != nil || host == "" {
			continue
		}
		if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
			hosts = append(hosts, interfaceAddresses()...)
			continue
		}
		hosts = append(hosts, host)
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}

func interfaceAddresses() (list []string) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLinkLocalUnicast() {
			list = append(list, n.IP.String())
		}
	}
	return list
}
