package format

import (
	"fmt"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/nightjar-edr/nightjar/services/siem-forwarder/internal/alert"
)

// Format is one of the formats.
type Format string

// The formats.
const (
	JSONL Format = "jsonl"
	ECS   Format = "ecs"
	OCSF  Format = "ocsf"
	CEF   Format = "cef"
)

// Parse returns the format of that name.
func Parse(name string) (Format, error) {
	if f := Format(name); slices.Contains([]Format{JSONL, ECS, OCSF, CEF}, f) {
		return f, nil
	}
	return "", fmt.Errorf("want jsonl, ecs, ocsf or cef")
}

// JSON tells whether an alert in this format is one JSON object.
func (f Format) JSON() bool { return f != CEF }

// Encode writes an alert as one line without its end. The short form leaves
// out the event as it came where the format has a place of its own for it.
func (f Format) Encode(a *alert.Alert, short bool) ([]byte, error) {
	switch f {
	case ECS:
		return ecs(a, short)
	case OCSF:
		return ocsf(a, short)
	case CEF:
		return cef(a, short), nil
	}
	return a.Payload, nil
}

const product = "Nightjar"

// version is that of the program, as the build has it.
var version = func() string {
	if bi, ok := debug.ReadBuildInfo(); ok && bi.Main.Version != "" && bi.Main.Version != "(devel)" {
		return bi.Main.Version
	}
	return "devel"
}()

// document is a JSON object that is filled by paths.
type document map[string]any

// set sets the member at a dotted path unless the value says nothing.
func (d document) set(path string, value any) {
	switch v := value.(type) {
	case string:
		if v == "" {
			return
		}
	case int64:
		if v == 0 {
			return
		}
	case []string:
		if len(v) == 0 {
			return
		}
	case document:
		if len(v) == 0 {
			return
		}
	case []document:
		if len(v) == 0 {
			return
		}
	}
	names := strings.Split(path, ".")
	at := d
	for _, n := range names[:len(names)-1] {
		next, ok := at[n].(document)
		if !ok {
			next = document{}
			at[n] = next
		}
		at = next
	}
	at[names[len(names)-1]] = value
}

// base is the last element of a path of either system.
func base(path string) string {
	return path[strings.LastIndexAny(path, `/\`)+1:]
}

// unique returns the texts that are not empty, each once.
func unique(list ...string) []string {
	var out []string
	for _, s := range list {
		if s != "" && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}
