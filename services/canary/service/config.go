package canary

import (
	"errors"
	"flag"
	"fmt"
	"net/url"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/config"
	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

// Name is the name of the program and of its NATS user.
const Name = access.Canary

// Defaults of Config.
const (
	DefaultInterval = 30 * time.Second
	DefaultTimeout  = 10 * time.Second
	DefaultHostname = "nightjar-canary"
)

// Config is what a canary needs.
type Config struct {
	lifecycle.Env
	// AdminURL and AgentURL are the addresses of the two APIs.
	AdminURL, AgentURL string
	// AdminKey is the key of an operator. When it is empty, AdminKeyFile is
	// read for each request.
	AdminKey, AdminKeyFile string
	// CAFile is a PEM file with the authority of the APIs' certificate; empty
	// for those of the system.
	CAFile string
	// Hostname is what the canary's endpoint is called; DefaultHostname when
	// it is empty.
	Hostname string
	// Interval is the time from the beginning of one round to that of the
	// next, Timeout the time that one step may take. 0 means the default.
	Interval, Timeout time.Duration
}

// Flags adds the canary's own flags and returns the function that makes the
// canary once they are read.
func Flags(fs *flag.FlagSet) func(lifecycle.Env) (lifecycle.Component, error) {
	var c Config
	interval, timeout := config.Duration(DefaultInterval), config.Duration(DefaultTimeout)
	fs.StringVar(&c.AdminURL, "admin-url", "https://127.0.0.1:8001", "address of the admin API")
	fs.StringVar(&c.AgentURL, "agent-url", "https://127.0.0.1:8000", "address of the agent API")
	fs.StringVar(&c.AdminKey, "admin-key", "", "key of an operator; unset: read from --admin-key-file")
	fs.StringVar(&c.AdminKeyFile, "admin-key-file", "", "file with the key of an operator, read for each request")
	fs.StringVar(&c.CAFile, "api-ca", "", "PEM file with the certificate authority of both APIs; unset: the system's")
	fs.StringVar(&c.Hostname, "hostname", DefaultHostname, "hostname of the canary's endpoint")
	fs.Var(&interval, "interval", "time from the beginning of one round to that of the next")
	fs.Var(&timeout, "timeout", "time that one step of a round may take")
	positive := func(name string, d *config.Duration) {
		config.Check(fs, name, func() error {
			if *d == 0 {
				return errors.New("want more than 0")
			}
			return nil
		})
	}
	positive("interval", &interval)
	positive("timeout", &timeout)
	config.Check(fs, "admin-url", func() error { return checkURL(c.AdminURL) })
	config.Check(fs, "agent-url", func() error { return checkURL(c.AgentURL) })
	return func(env lifecycle.Env) (lifecycle.Component, error) {
		c.Env, c.Interval, c.Timeout = env, time.Duration(interval), time.Duration(timeout)
		return New(c)
	}
}

// checkURL tells whether s is the address of an API.
func checkURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.Path != "" && u.Path != "/" || u.RawQuery != "" {
		return errors.New("want https://HOST:PORT")
	}
	return nil
}

// complete sets defaults and checks what can be checked.
func (c *Config) complete() error {
	if c.Hostname == "" {
		c.Hostname = DefaultHostname
	}
	if c.Interval == 0 {
		c.Interval = DefaultInterval
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	for name, address := range map[string]string{"admin-url": c.AdminURL, "agent-url": c.AgentURL} {
		if err := checkURL(address); err != nil {
			return fmt.Errorf("%s %q: %w", name, address, err)
		}
	}
	if c.AdminKey == "" && c.AdminKeyFile == "" {
		return errors.New("admin-key: want the key of an operator, or --admin-key-file")
	}
	return nil
}
