package ingest

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/config"
	"github.com/nightjar-edr/nightjar/pkg/contract/subject"
	"github.com/nightjar-edr/nightjar/pkg/lifecycle"
)

// DefaultRetentionAlerts is how long artifacts are kept unless told otherwise.
const DefaultRetentionAlerts = 365 * 24 * time.Hour

// Config is what the service is made from.
type Config struct {
	lifecycle.Env
	// Partitions are the partitions of endpoints that this replica owns,
	// nil for all. A store that was built for others moves to them.
	Partitions []int
	// RetentionAlerts is how long artifacts are kept, as long as alerts, 0 for
	// ever. Events and alerts are kept as long as their streams keep them.
	RetentionAlerts time.Duration
	// MergeAfter is how long nothing must have come for an hour of an endpoint
	// until its chunks are merged; 0 means DefaultMergeAfter.
	MergeAfter time.Duration
	// Alone tells that no other replica is or comes on the same NATS, as in
	// standalone: there is nobody to tell what this one holds, nor to hear of.
	Alone bool
}

// Flags adds the service's flags and returns the function that makes the
// service once they are read.
func Flags(fs *flag.FlagSet) func(lifecycle.Env) (lifecycle.Component, error) {
	alerts := config.Duration(DefaultRetentionAlerts)
	fs.Var(&alerts, "retention-alerts", "how long artifacts are kept, 0 for ever; alerts are kept as long as the rule-engine says")
	var after config.Duration
	AddMergeAfter(fs, &after)
	shards := fs.Int("shards", 1, "number of shares that the partitions of endpoints are cut into")
	ordinal := fs.Int("ordinal", -1, "number of this replica, which owns share ordinal modulo shards\n-1: the number that the host name ends with")
	for _, name := range []string{"shards", "ordinal"} {
		config.Check(fs, name, func() error {
			_, err := share(*shards, *ordinal, os.Hostname)
			return err
		})
	}
	return func(env lifecycle.Env) (lifecycle.Component, error) {
		partitions, err := share(*shards, *ordinal, os.Hostname)
		if err != nil {
			return nil, err
		}
		return New(Config{Env: env, Partitions: partitions, RetentionAlerts: time.Duration(alerts), MergeAfter: time.Duration(after)})
	}
}

// AddMergeAfter adds the flag of Config.MergeAfter, which fills after.
func AddMergeAfter(fs *flag.FlagSet, after *config.Duration) {
	*after = config.Duration(DefaultMergeAfter)
	fs.Var(after, "merge-after", "how long nothing must have come for an hour of an endpoint until its events are stored in fewer pieces, compressed better")
	config.Check(fs, "merge-after", func() error {
		if *after == 0 {
			return errors.New("want a duration such as 30s, more than 0")
		}
		return nil
	})
}

var trailingNumber = regexp.MustCompile(`[0-9]{1,9}$`)

// share returns the partitions of a replica, nil for all.
func share(shards, ordinal int, hostname func() (string, error)) ([]int, error) {
	switch {
	case shards < 1 || shards > subject.Partitions:
		return nil, fmt.Errorf("shards %d: want 1 to %d", shards, subject.Partitions)
	case ordinal < -1:
		return nil, fmt.Errorf("ordinal %d: want -1 or more", ordinal)
	case shards == 1:
		return nil, nil
	}
	if ordinal < 0 {
		name, err := hostname()
		if err != nil {
			return nil, fmt.Errorf("ordinal: %w", err)
		}
		number := trailingNumber.FindString(name)
		if number == "" {
			return nil, fmt.Errorf("ordinal: host name %q does not end with a number", name)
		}
		if ordinal, err = strconv.Atoi(number); err != nil {
			return nil, fmt.Errorf("ordinal: %w", err)
		}
	}
	var own []int
	for p := range subject.Partitions {
		if p%shards == ordinal%shards {
			own = append(own, p)
		}
	}
	return own, nil
}

// partitionSet is the set of partitions that a replica owns.
type partitionSet [subject.Partitions]bool

func newPartitionSet(list []int) (partitionSet, error) {
	var s partitionSet
	if list == nil {
		return s.complement(), nil
	}
	if len(list) == 0 {
		return s, errors.New("no partition is owned")
	}
	for _, p := range list {
		if p < 0 || p >= len(s) {
			return s, fmt.Errorf("partition %d: want 0 to %d", p, len(s)-1)
		}
		s[p] = true
	}
	return s, nil
}

func (s *partitionSet) all() bool { return !slices.Contains(s[:], false) }

func (s *partitionSet) empty() bool { return !slices.Contains(s[:], true) }

// complement returns the partitions that are not in s.
func (s *partitionSet) complement() (c partitionSet) {
	for p := range c {
		c[p] = !s[p]
	}
	return c
}

// and returns the partitions that are in both sets.
func (s *partitionSet) and(o *partitionSet) (c partitionSet) {
	for p := range c {
		c[p] = s[p] && o[p]
	}
	return c
}

// or returns the partitions that are in one of the sets.
func (s *partitionSet) or(o *partitionSet) (c partitionSet) {
	for p := range c {
		c[p] = s[p] || o[p]
	}
	return c
}

// setOf returns the set of some partitions, which are known to be some.
func setOf(list []int) (s partitionSet) {
	for _, p := range list {
		s[p] = true
	}
	return s
}

// list returns the partitions in ascending order.
func (s *partitionSet) list() []int {
	var out []int
	for p, own := range s {
		if own {
			out = append(out, p)
		}
	}
	return out
}

func (s *partitionSet) owns(endpoint string) bool { return s[subject.PartitionOf(endpoint)] }
