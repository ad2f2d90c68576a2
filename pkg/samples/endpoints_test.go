package samples

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// event is what the tests look at in an event, of Windows and of Kunai.
type event struct {
	Event struct {
		EventData map[string]string
		UserData  map[string]any
		GeneInfo  *struct {
			Signature   []string
			Criticality int
		}
		System struct {
			Channel       string
			Computer      string
			EventID       string
			EventRecordID string
			Keywords      string
			Level         string
			Opcode        string
			Task          string
			Version       string
			Provider      map[string]string
			TimeCreated   struct{ SystemTime string }
		}
	}
	Info struct {
		Host    struct{ Hostname string }
		UTCTime string `json:"utc_time"`
		Event   struct {
			ID     int
			Name   string
			Source string
			UUID   string
		}
	}
	Data      map[string]any
	Detection *struct {
		Rules    []string
		Severity int
	}
}

func (e event) isKunai() bool { return e.Info.Event.Source == "kunai" }

// mark returns the signatures and the criticality that the agent gave.
func (e event) mark() ([]string, int) {
	switch {
	case e.Event.GeneInfo != nil:
		return e.Event.GeneInfo.Signature, e.Event.GeneInfo.Criticality
	case e.Detection != nil:
		return e.Detection.Rules, e.Detection.Severity
	default:
		return nil, 0
	}
}

func decode(t *testing.T, line []byte) event {
	t.Helper()
	var e event
	if err := json.Unmarshal(line, &e); err != nil {
		t.Fatalf("%v in %s", err, line)
	}
	return e
}

func TestEndpoints(t *testing.T) {
	uuids := map[string]bool{}
	for _, ep := range Endpoints() {
		t.Run(ep.Hostname, func(t *testing.T) {
			if len(ep.Lines) < 15 {
				t.Fatalf("%d events", len(ep.Lines))
			}
			records := map[string]int{}
			var last time.Time
			for i, line := range ep.Lines {
				if bytes.ContainsAny(line, "\r\n") {
					t.Fatalf("line %d holds a line end", i)
				}
				e := decode(t, line)
				at, ok := eventTime(line)
				if !ok || !at.After(last) {
					t.Errorf("line %d: time %v after %v", i, at, last)
				}
				last = at
				if e.isKunai() {
					checkKunai(t, i, e, ep.Hostname, uuids)
				} else {
					checkWindows(t, i, e, ep.Hostname, records)
				}
			}
			first, _ := eventTime(ep.Lines[0])
			if span := last.Sub(first); span < 25*time.Minute || span > 35*time.Minute {
				t.Errorf("the story lasts %v", span)
			}
		})
	}
}

func checkKunai(t *testing.T, i int, e event, host string, uuids map[string]bool) {
	t.Helper()
	if e.Info.Host.Hostname != host || e.Info.Event.Name == "" || len(e.Data) == 0 {
		t.Errorf("line %d lacks a member of a Kunai event", i)
	}
	if uuids[e.Info.Event.UUID] {
		t.Errorf("line %d: uuid %s occurs twice", i, e.Info.Event.UUID)
	}
	uuids[e.Info.Event.UUID] = true
}

func checkWindows(t *testing.T, i int, e event, host string, records map[string]int) {
	t.Helper()
	s := e.Event.System
	if label, _, _ := strings.Cut(s.Computer, "."); label != host {
		t.Errorf("line %d: Computer is %q", i, s.Computer)
	}
	for name, v := range map[string]string{
		"Channel": s.Channel, "EventID": s.EventID, "Keywords": s.Keywords, "Level": s.Level, "Opcode": s.Opcode,
		"Task": s.Task, "Version": s.Version, "Provider.Name": s.Provider["Name"], "Provider.Guid": s.Provider["Guid"],
	} {
		if v == "" {
			t.Errorf("line %d: no %s", i, name)
		}
	}
	if len(e.Event.EventData)+len(e.Event.UserData) == 0 {
		t.Errorf("line %d: neither EventData nor UserData", i)
	}
	var record int
	if err := json.Unmarshal([]byte(s.EventRecordID), &record); err != nil || record <= records[s.Channel] {
		t.Errorf("line %d: EventRecordID %q after %d", i, s.EventRecordID, records[s.Channel])
	}
	records[s.Channel] = record
}

func TestEndpointsAreInvented(t *testing.T) {
	reserved := []netip.Prefix{
		netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.51.100.0/24"),
		netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("127.0.0.0/8"),
	}
	dotted := regexp.MustCompile(`(?:^|[^\d.\w-])(\d{1,3}(?:\.\d{1,3}){3})(?:[^\d.\w-]|$)`)
	for _, ep := range Endpoints() {
		for i, line := range ep.Lines {
			var values []string
			var all any
			if err := json.Unmarshal(line, &all); err != nil {
				t.Fatal(err)
			}
			collect(all, "", func(key, value string) {
				if key == "FileVersion" {
					return
				}
				values = append(values, value)
				if key == "QueryName" && !reservedName(value) {
					t.Errorf("%s line %d: looks up %q", ep.Hostname, i, value)
				}
			})
			for _, v := range values {
				for _, m := range dotted.FindAllStringSubmatch(v, -1) {
					addr, err := netip.ParseAddr(m[1])
					if err != nil {
						continue
					}
					if !slices.ContainsFunc(reserved, func(p netip.Prefix) bool { return p.Contains(addr) }) {
						t.Errorf("%s line %d: address %s in %q", ep.Hostname, i, addr, v)
					}
				}
			}
		}
	}
}

func collect(v any, key string, visit func(key, value string)) {
	switch v := v.(type) {
	case map[string]any:
		for k, member := range v {
			collect(member, k, visit)
		}
	case []any:
		for _, item := range v {
			collect(item, key, visit)
		}
	case string:
		visit(key, v)
	}
}

func reservedName(name string) bool {
	return slices.ContainsFunc([]string{".example", ".example.com", ".example.org", ".example.net"},
		func(suffix string) bool { return strings.HasSuffix(name, suffix) })
}

func TestExpected(t *testing.T) {
	criticality := map[string]int{}
	for _, r := range readRules(t) {
		if !r.Meta.Filter {
			criticality[r.Name] = *r.Meta.Criticality
		}
	}
	fired := map[string]bool{}
	origins := map[string]bool{}
	for _, ep := range Endpoints() {
		t.Run(ep.Hostname, func(t *testing.T) {
			expected := map[int]Expectation{}
			previous := -1
			for _, x := range ep.Expected {
				if x.Line <= previous || x.Line >= len(ep.Lines) {
					t.Fatalf("line %d after %d of %d", x.Line, previous, len(ep.Lines))
				}
				previous = x.Line
				expected[x.Line] = x
				origins[x.Origin] = true
			}
			for i, line := range ep.Lines {
				agent, score := decode(t, line).mark()
				x, alerts := expected[i]
				if !alerts {
					if len(agent) > 0 {
						t.Errorf("line %d: marked by the agent and not expected", i)
					}
					continue
				}
				if len(agent) > len(x.Signatures) || !slices.Equal(x.Signatures[:len(agent)], agent) {
					t.Errorf("line %d: %v does not begin with the agent's %v", i, x.Signatures, agent)
					continue
				}
				sum, known := 0, 0
				for _, name := range x.Signatures {
					c, ok := criticality[name]
					if ok {
						known++
						fired[name] = true
					} else if !slices.Contains(agent, name) {
						t.Errorf("line %d: no rule %q", i, name)
					}
					sum += c
				}
				if want := max(score, min(sum, 10)); x.Criticality != want {
					t.Errorf("line %d: criticality %d, want %d", i, x.Criticality, want)
				}
				if want := origin(len(agent), known); x.Origin != want {
					t.Errorf("line %d: origin %q, want %q", i, x.Origin, want)
				}
			}
		})
	}
	for name := range criticality {
		if !fired[name] {
			t.Errorf("no story sets off the rule %s", name)
		}
	}
	if len(origins) != 3 {
		t.Errorf("origins %v, want all three", origins)
	}
}

func origin(agent, manager int) string {
	switch {
	case manager == 0:
		return OriginAgent
	case agent == 0:
		return OriginManager
	default:
		return OriginBoth
	}
}

// TestStoriesAndFilesAgree finds an event file without a story, and a story
// without its file.
func TestStoriesAndFilesAgree(t *testing.T) {
	files, err := fs.Glob(content, eventsDir+"/*")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, ep := range Endpoints() {
		want = append(want, eventsDir+"/"+ep.Hostname+eventsExt)
	}
	slices.Sort(files)
	slices.Sort(want)
	if !slices.Equal(files, want) {
		t.Errorf("files %v, stories %v", files, want)
	}
}

func TestEndpointsAreCopies(t *testing.T) {
	want := Endpoints()
	spoilt := Endpoints()
	for i := range spoilt {
		for _, line := range spoilt[i].Lines {
			clear(line)
		}
		spoilt[i].Expected[0].Signatures[0] = ""
		spoilt[i].Expected[0].Line = -1
	}
	if !reflect.DeepEqual(Endpoints(), want) {
		t.Error("a caller's change reached the next caller")
	}
}

func TestLinesDoNotOverlap(t *testing.T) {
	ep := Endpoints()[0]
	second := bytes.Clone(ep.Lines[1])
	_ = append(ep.Lines[0], "overflow"...)
	if !bytes.Equal(ep.Lines[1], second) {
		t.Error("appending to a line changed the next one")
	}
}
