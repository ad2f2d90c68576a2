package access

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// siemName is what NATS and its tools accept as the name of a consumer.
var siemName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,32}$`)

// CheckSIEM tells whether a SIEM can have this name, which is the name of its
// user and of its consumer.
func CheckSIEM(name string) error {
	switch {
	case !siemName.MatchString(name):
		return fmt.Errorf("siem %q: a name is 1 to 32 letters, digits, - and _", name)
	case slices.Contains(Services, name):
		return fmt.Errorf("siem %q: this is the name of a service", name)
	case name == Backup || name == Restore || name == Canary:
		return fmt.Errorf("siem %q: this is the name of a user of Nightjar's own", name)
	}
	return nil
}

// ParseSIEMs reads a comma-separated list of names of SIEMs, each of which it
// returns once.
func ParseSIEMs(list string) ([]string, error) {
	var names []string
	for name := range strings.SplitSeq(list, ",") {
		if name = strings.TrimSpace(name); name == "" || slices.Contains(names, name) {
			continue
		}
		if err := CheckSIEM(name); err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	return names, nil
}
