package samples

import (
	"bytes"
	"embed"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
)

//go:embed rules events
var content embed.FS

const (
	rulesDir  = "rules"
	eventsDir = "events"
	eventsExt = ".jsonl"
)

// The values of [Expectation.Origin]. They are the values of the header
// Nightjar-Origin of an alert.
const (
	// OriginAgent is the origin of an alert that only the agent raised.
	OriginAgent = "agent"
	// OriginManager is the origin of an alert that only the rule-engine raised.
	OriginManager = "manager"
	// OriginBoth is the origin of an alert that the agent raised and in which
	// the rule-engine found something as well.
	OriginBoth = "both"
)

// Endpoint is a simulated machine together with the events that its agent sends.
type Endpoint struct {
	// Hostname is the name under which the agent presents itself. For Windows
	// it is the first label of the event's Computer.
	Hostname string
	// Lines are the events in the order of their time, one JSON object each and
	// without the line end.
	Lines [][]byte
	// Expected are the alerts that come of Lines under the rules of this
	// package, in the order of Lines. A line not named here raises no alert.
	Expected []Expectation
}

// Expectation describes the one alert that a line of an [Endpoint] raises.
type Expectation struct {
	// Line is the index into [Endpoint.Lines], counted from 0.
	Line int
	// Signatures are the names in the alert: the agent's first, in the agent's
	// order, then those that only the rule-engine found, sorted by name.
	Signatures []string
	// Criticality is from 0 to 10: the larger of the agent's and the
	// rule-engine's, the latter being the sum over its rules, at most 10.
	Criticality int
	// Origin is OriginAgent, OriginManager or OriginBoth.
	Origin string
}

// Rules returns the rule and template files, all of them at the root of the
// file system. The files can be read but not changed.
func Rules() fs.FS {
	// fs.Sub fails only for an invalid path, and this one is a valid constant.
	sub, _ := fs.Sub(content, rulesDir)
	return sub
}

// WriteRules writes the rule and template files into the folder dir, which it
// creates where it does not exist. Files of the same name are replaced, other
// files stay as they are, so calling it again restores the rules as shipped.
// After an error some of the files may be written.
func WriteRules(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("create the folder of the sample rules: %w", err)
	}
	rules := Rules()
	entries, err := fs.ReadDir(rules, ".")
	if err != nil {
		return fmt.Errorf("list the sample rules: %w", err)
	}
	for _, entry := range entries {
		data, err := fs.ReadFile(rules, entry.Name())
		if err != nil {
			return fmt.Errorf("read sample rule file: %w", err)
		}
		if err := os.WriteFile(filepath.Join(dir, entry.Name()), data, 0o644); err != nil {
			return fmt.Errorf("write sample rule file: %w", err)
		}
	}
	return nil
}

// Endpoints returns the simulated endpoints: the Windows workstations, the
// Windows server, the Linux machine. Each call returns a copy of its own, which
// the caller may change.
func Endpoints() []Endpoint {
	endpoints := make([]Endpoint, 0, len(stories))
	for _, s := range stories {
		endpoints = append(endpoints, Endpoint{
			Hostname: s.hostname,
			Lines:    lines(s.hostname),
			Expected: cloneExpected(s.expected),
		})
	}
	return endpoints
}

func lines(hostname string) [][]byte {
	// A missing file leaves the story empty; the tests hold stories and files
	// together. ReadFile gives a copy, so the lines may share it.
	data, _ := content.ReadFile(path.Join(eventsDir, hostname+eventsExt))
	var out [][]byte
	for line := range bytes.Lines(data) {
		line = bytes.TrimSuffix(line, []byte("\n"))
		out = append(out, line[:len(line):len(line)])
	}
	return out
}

func cloneExpected(expected []Expectation) []Expectation {
	out := slices.Clone(expected)
	for i := range out {
		out[i].Signatures = slices.Clone(out[i].Signatures)
	}
	return out
}
