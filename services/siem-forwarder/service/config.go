package forwarder

import (
	"errors"
	"flag"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/config"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"

	"github.com/nightjar-edr/nightjar/services/siem-forwarder/internal/format"
	"github.com/nightjar-edr/nightjar/services/siem-forwarder/internal/target"
)

const (
	// Name is the name of the service.
	Name = "siem-forwarder"
	// UserFlag is the flag that holds the NATS user: the name of a SIEM.
	UserFlag = "siem"
)

// Defaults of Config.
const (
	DefaultBatch   = 200
	DefaultLinger  = time.Second
	DefaultTimeout = 30 * time.Second
)

// What becomes of an alert that the target refuses for good.
const (
	// RefusedFile appends it to the file refused.jsonl in the data folder.
	RefusedFile = "file"
	// RefusedWait sends it again and again, and nothing behind it.
	RefusedWait = "wait"
)

// Config configures the service.
type Config struct {
	lifecycle.Env
	// SIEM is the name of the SIEM in the manager's setting siem, which is
	// the name of its durable consumer.
	SIEM string
	// Format is jsonl, ecs, ocsf or cef.
	Format string
	// Target chooses the target; its Format and Shortened are set by New.
	Target target.Options
	// Batch is the most alerts that are handed over at once, Linger how long
	// the first waits for others. 0 means the default.
	Batch  int
	Linger time.Duration
	// MinSeverity is the lowest severity that is forwarded; empty for all.
	MinSeverity string
	// Refused is RefusedFile, which empty means as well, or RefusedWait.
	Refused string
}

// Flags adds the service's own flags and returns the function that makes the
// service once they are read.
func Flags(fs *flag.FlagSet) func(lifecycle.Env) (lifecycle.Component, error) {
	var c Config
	linger, timeout := config.Duration(DefaultLinger), config.Duration(DefaultTimeout)
	syslogBytes := config.Bytes(target.DefaultSyslogBytes)
	var cert string
	fs.StringVar(&c.SIEM, UserFlag, "siem", "name of the SIEM, one of the manager's --siem; --nats-nkey is its seed, <data-dir>/<name>.nk of the manager")
	fs.StringVar(&c.Format, "format", string(format.ECS), "jsonl (the alert as it is), ecs, ocsf or cef")
	fs.StringVar(&c.Target.Output, "output", "stdout", "stdout, a file to append to, syslog+tls://host:port, syslog+tcp://host:port, or the address of --webhook")
	fs.StringVar(&c.Target.Webhook, "webhook", "", "what an http(s) output speaks: splunk-hec, elasticsearch-bulk, or plain for lines as the body of a POST")
	fs.StringVar(&c.Target.Index, "index", "", "index or data stream for elasticsearch-bulk")
	fs.StringVar(&c.Target.TokenFile, "token-file", "", "file with the credentials for an http(s) output: a token, or a scheme and what belongs to it")
	fs.StringVar(&c.Target.CAFile, "output-ca", "", "PEM file with the certificate authority of the output; unset: the system's")
	fs.StringVar(&cert, "output-cert", "", "CERT,KEY that are shown to the output")
	fs.Var(&syslogBytes, "syslog-max", "largest syslog message in bytes, at least 2048; a longer one is shortened")
	fs.IntVar(&c.Batch, "batch", DefaultBatch, "alerts that are handed over at once, at most 1000")
	fs.Var(&linger, "linger", "how long an alert waits for others")
	fs.Var(&timeout, "timeout", "time for one exchange with the output")
	fs.StringVar(&c.MinSeverity, "min-severity", string(subject.Info), "lowest severity that is forwarded: info, low, medium, high or critical")
	fs.StringVar(&c.Refused, "refused", RefusedFile, "what becomes of an alert that the output refuses for good: file appends it to <data-dir>/refused.jsonl, wait goes on trying")
	return func(env lifecycle.Env) (lifecycle.Component, error) {
		c.Env, c.Linger, c.Target.Timeout, c.Target.SyslogBytes = env, time.Duration(linger), time.Duration(timeout), int(syslogBytes)
		if cert != "" {
			var ok bool
			if c.Target.CertFile, c.Target.KeyFile, ok = strings.Cut(cert, ","); !ok {
				return nil, fmt.Errorf("%w: output-cert %q: want CERT,KEY", lifecycle.ErrUsage, cert)
			}
		}
		return New(c)
	}
}

var severities = []subject.Severity{subject.Info, subject.Low, subject.Medium, subject.High, subject.Critical}

// maxBatch is how many alerts a consumer has in hand at most.
const maxBatch = 1000

// complete sets defaults and checks what can be checked.
func (c *Config) complete() error {
	if c.Batch == 0 {
		c.Batch = DefaultBatch
	}
	if c.Linger == 0 {
		c.Linger = DefaultLinger
	}
	if c.Target.Timeout == 0 {
		c.Target.Timeout = DefaultTimeout
	}
	if c.Refused == "" {
		c.Refused = RefusedFile
	}
	if c.MinSeverity == "" {
		c.MinSeverity = string(subject.Info)
	}
	var err error
	if c.Target.Format, err = format.Parse(c.Format); err != nil {
		return fmt.Errorf("format %q: %w", c.Format, err)
	}
	http := strings.HasPrefix(c.Target.Output, "http://") || strings.HasPrefix(c.Target.Output, "https://")
	switch {
	case c.SIEM == "" || strings.ContainsAny(c.SIEM, ".*> \t"):
		return fmt.Errorf("siem %q: want the name of a SIEM", c.SIEM)
	case c.Batch < 1 || c.Batch > maxBatch:
		return fmt.Errorf("batch: want 1 to %d", maxBatch)
	case c.Target.SyslogBytes != 0 && c.Target.SyslogBytes < 2048:
		return errors.New("syslog-max: want at least 2048, which every receiver takes (RFC 5425)")
	case c.Refused != RefusedFile && c.Refused != RefusedWait:
		return fmt.Errorf("refused %q: want %s or %s", c.Refused, RefusedFile, RefusedWait)
	case !slices.Contains(severities, subject.Severity(c.MinSeverity)):
		return fmt.Errorf("min-severity %q: want info, low, medium, high or critical", c.MinSeverity)
	case http && c.Target.Webhook == "":
		return fmt.Errorf("webhook: an http(s) output needs one: %s, %s or %s", target.Splunk, target.Elastic, target.Plain)
	case !http && c.Target.Webhook != "":
		return fmt.Errorf("webhook: output %q is no http(s) address", c.Target.Output)
	case !http && c.Target.TokenFile != "":
		return fmt.Errorf("token-file: output %q takes no token", c.Target.Output)
	}
	return nil
}

// wanted tells whether alerts of a severity are forwarded.
func (c *Config) wanted(s subject.Severity) bool {
	return slices.Index(severities, s) >= slices.Index(severities, subject.Severity(c.MinSeverity))
}

func (c *Config) refusedFile() string { return filepath.Join(c.DataDir, "refused.jsonl") }
