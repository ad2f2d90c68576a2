package ruleengine

import (
	"errors"
	"flag"
	"fmt"
	"runtime"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/config"
	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

// DefaultRetentionAlerts is how long alerts are kept unless told otherwise.
const DefaultRetentionAlerts = 365 * 24 * time.Hour

// Config holds the settings of the service.
type Config struct {
	lifecycle.Env
	// RulesDir is a folder of rule files that is imported at start; empty for
	// none.
	RulesDir string
	// ContainersDir is a folder of container files that is imported at start;
	// empty for none.
	ContainersDir string
	// OtherRulesDir and OtherContainersDir are folders of another manager,
	// imported at start beside RulesDir and ContainersDir, whose rules and
	// containers are preferred where both have one of a name. A folder that
	// does not exist counts as empty.
	OtherRulesDir, OtherContainersDir string
	// SIEMs are the names of the SIEMs; each gets a durable consumer of that
	// name on the stream ALERTS.
	SIEMs []string
	// RetentionAlerts is how long alerts are kept, 0 for ever;
	// RetentionAlertBytes the size of ALERTS beyond which the oldest go, 0 for
	// no bound.
	RetentionAlerts     time.Duration
	RetentionAlertBytes int64
	// MaxAlertBytes is the size at which ALERTS refuses, 0 for no bound.
	MaxAlertBytes int64
	// Workers is the number of goroutines that detect; 0 means as many as the
	// process may use processors.
	Workers int

	// ackWait is after what silence a batch is handed to another replica; 0
	// means defaultAckWait.
	ackWait time.Duration
	// ackEvery is how often batches are acknowledged that come seldom; 0 means
	// the constant ackEvery.
	ackEvery time.Duration
	// rules and containers are what RulesDir and ContainersDir hold, where
	// the check of the flags has read them; nil to have New read them.
	rules      *ruleFolder
	containers []containerFile
}

const defaultAckWait = 30 * time.Second

// Flags adds the service's own flags and returns the function that makes the
// service once they are read.
func Flags(fs *flag.FlagSet) func(lifecycle.Env) (lifecycle.Component, error) {
	rulesDir := fs.String("rules-dir", "", "folder with .gen and .gene rule files and .toml and .tpl templates, imported at start")
	containersDir := fs.String("containers-dir", "", "folder with container files, imported at start unless unchanged since their last import; a container's name is its file's up to the first dot")
	list := fs.String("siem", "siem", "names of SIEMs, comma-separated; each gets a durable consumer on the stream ALERTS")
	config.Check(fs, "siem", func() error {
		_, err := access.ParseSIEMs(*list)
		return err
	})
	retention := config.Duration(DefaultRetentionAlerts)
	fs.Var(&retention, "retention-alerts", "how long alerts are kept; 0 for ever")
	var size, maxBytes config.Bytes
	fs.Var(&size, "retention-alerts-size", "bytes of alerts that are kept, such as 5GiB; the oldest go beyond")
	fs.Var(&maxBytes, "max-alert-bytes", "bytes that the stream ALERTS may use; alerts wait beyond")
	config.Check(fs, "retention-alerts-size", func() error { return config.CheckBelow(size, "max-alert-bytes", maxBytes) })
	workers := fs.Int("workers", 0, "goroutines that detect; 0 for one for each processor")
	var rules *ruleFolder
	var containers []containerFile
	config.Check(fs, "rules-dir", unlessEmpty(rulesDir, func() (err error) { rules, err = parseRuleFolder(*rulesDir); return err }))
	config.Check(fs, "containers-dir", unlessEmpty(containersDir, func() (err error) { containers, err = parseContainerFolder(*containersDir); return err }))
	config.Check(fs, "workers", func() error { return checkWorkers(*workers) })
	return func(env lifecycle.Env) (lifecycle.Component, error) {
		siems, err := access.ParseSIEMs(*list)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", lifecycle.ErrUsage, err)
		}
		return New(Config{
			Env: env, RulesDir: *rulesDir, ContainersDir: *containersDir, SIEMs: siems,
			RetentionAlerts: time.Duration(retention), RetentionAlertBytes: int64(size), MaxAlertBytes: int64(maxBytes), Workers: *workers,
			rules: rules, containers: containers,
		})
	}
}

func (c *Config) check() error {
	if c.Workers == 0 {
		c.Workers = runtime.GOMAXPROCS(0)
	}
	if c.ackWait == 0 {
		c.ackWait = defaultAckWait
	}
	if c.ackEvery == 0 {
		c.ackEvery = ackEvery
	}
	if err := checkWorkers(c.Workers); err != nil {
		return fmt.Errorf("%w: workers %d: %w", lifecycle.ErrUsage, c.Workers, err)
	}
	for _, name := range c.SIEMs {
		if err := access.CheckSIEM(name); err != nil {
			return fmt.Errorf("%w: %w", lifecycle.ErrUsage, err)
		}
	}
	return nil
}

func checkWorkers(n int) error {
	if n < 0 || n > 1024 {
		return errors.New("want 0 to 1024")
	}
	return nil
}

// unlessEmpty is a check of a folder that need not be given.
func unlessEmpty(dir *string, check func() error) func() error {
	return func() error {
		if *dir == "" {
			return nil
		}
		return check()
	}
}
