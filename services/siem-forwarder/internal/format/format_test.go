package format_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
	"github.com/nightjar-edr/nightjar/services/siem-forwarder/internal/alert"
	"github.com/nightjar-edr/nightjar/services/siem-forwarder/internal/alerttest"
	"github.com/nightjar-edr/nightjar/services/siem-forwarder/internal/format"
)

var update = flag.Bool("update", false, "write the golden files anew")

func alerts(t testing.TB) []*alert.Alert {
	t.Helper()
	var list []*alert.Alert
	for _, m := range alerttest.Samples(t) {
		a, err := alert.Read(m.Header, m.Data)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, a)
	}
	return list
}

func encode(t testing.TB, f format.Format, a *alert.Alert, short bool) []byte {
	t.Helper()
	b, err := f.Encode(a, short)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestGolden pins every format: people build dashboards on these names.
func TestGolden(t *testing.T) {
	for _, f := range []format.Format{format.ECS, format.OCSF, format.CEF} {
		var got bytes.Buffer
		for _, a := range alerts(t) {
			got.Write(encode(t, f, a, true))
			got.WriteByte('\n')
		}
		file := filepath.Join("testdata", string(f)+".golden")
		if *update {
			if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%s differs from %s; -update writes it anew\n%s", f, file, firstDifference(got.String(), string(want)))
		}
	}
}

func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			return "got  " + g[i] + "\nwant " + w[i]
		}
	}
	return "one is longer"
}

// TestOriginal holds that every format carries the payload byte by byte, and
// its id, and that the short form leaves the payload out.
func TestOriginal(t *testing.T) {
	for _, a := range alerts(t) {
		if got := encode(t, format.JSONL, a, true); !bytes.Equal(got, a.Payload) {
			t.Errorf("jsonl: %s", got)
		}
		var ecs struct {
			Event struct{ ID, Original string }
		}
		var ocsf struct {
			Metadata struct{ UID string }
			RawData  string `json:"raw_data"`
		}
		for f, doc := range map[format.Format]any{format.ECS: &ecs, format.OCSF: &ocsf} {
			if err := json.Unmarshal(encode(t, f, a, false), doc); err != nil {
				t.Fatal(err)
			}
			if short := encode(t, f, a, true); len(short) > len(encode(t, f, a, false))-len(a.Payload) {
				t.Errorf("%s: the short form has %d bytes", f, len(short))
			}
		}
		if ecs.Event.ID != a.ID || ecs.Event.Original != string(a.Payload) {
			t.Errorf("ecs: %+v", ecs)
		}
		if ocsf.Metadata.UID != a.ID || ocsf.RawData != string(a.Payload) {
			t.Errorf("ocsf: %+v", ocsf)
		}
		pairs := parseCEF(t, string(encode(t, format.CEF, a, false)))
		if pairs["rawEvent"] != string(a.Payload) || pairs["deviceExternalId"]+":"+pairs["externalId"] != a.ID {
			t.Errorf("cef: %v", pairs)
		}
	}
}

// TestOCSFRequired holds what OCSF 1.5.0 demands of a Detection Finding:
// required attributes, the constraints of the objects, and ids that fit.
func TestOCSFRequired(t *testing.T) {
	ids := map[string]float64{"info": 1, "low": 2, "medium": 3, "high": 4, "critical": 5}
	for _, a := range alerts(t) {
		var d map[string]any
		if err := json.Unmarshal(encode(t, format.OCSF, a, false), &d); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]float64{"activity_id": 1, "category_uid": 2, "class_uid": 2004, "type_uid": 200401, "severity_id": ids[string(a.Severity)], "time": float64(a.Received.UnixMilli())} {
			if d[name] != want {
				t.Errorf("%s is %v, want %v", name, d[name], want)
			}
		}
		object := func(v any) map[string]any { m, _ := v.(map[string]any); return m }
		metadata := object(d["metadata"])
		if metadata["version"] != "1.5.0" || object(metadata["product"])["vendor_name"] != "Nightjar" {
			t.Errorf("metadata %v", metadata)
		}
		finding := object(d["finding_info"])
		if finding["uid"] != a.ID || object(finding["analytic"])["type_id"] != 1.0 {
			t.Errorf("finding_info %v", finding)
		}
		if object(d["device"])["type_id"] != 0.0 {
			t.Errorf("device %v", d["device"])
		}
		evidences, _ := d["evidences"].([]any)
		for _, e := range evidences {
			checkOCSF(t, "evidences", e)
		}
	}
}

// checkOCSF demands what objects of certain names must have.
func checkOCSF(t *testing.T, name string, v any) {
	t.Helper()
	m, ok := v.(map[string]any)
	if !ok {
		return
	}
	for _, must := range map[string][]string{
		"file": {"name", "type_id"}, "connection_info": {"direction_id"}, "query": {"hostname"},
	}[name] {
		if _, ok := m[must]; !ok {
			t.Errorf("%s has no %s: %v", name, must, m)
		}
	}
	if strings.HasSuffix(name, "process") && m["pid"] == nil && m["uid"] == nil {
		t.Errorf("%s has neither pid nor uid: %v", name, m)
	}
	for n, child := range m {
		checkOCSF(t, n, child)
	}
}

// TestCEFEscaping reads back what cannot stand in CEF as it is.
func TestCEFEscaping(t *testing.T) {
	const nasty = "a|b=c\\d\ne\rf \\= \\n | =|"
	line, err := json.Marshal(map[string]any{"Event": map[string]any{
		"System":    map[string]any{"EventID": "1", "Provider": map[string]any{"Name": "Microsoft-Windows-Sysmon"}},
		"EventData": map[string]any{"Image": "/x|", "CommandLine": nasty, "User": `D\u|`, "ParentImage": nasty, "ProcessId": "4"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	m := alerttest.Message(t, "h", string(line), []string{`rule|with\pipe` + "\nbreak", "b=c"}, 10, message.OriginManager)
	a, err := alert.Read(m.Header, m.Data)
	if err != nil {
		t.Fatal(err)
	}
	text := string(encode(t, format.CEF, a, false))
	if strings.ContainsAny(text, "\n\r") {
		t.Fatalf("more than one line: %q", text)
	}
	if !strings.HasPrefix(text, `CEF:0|Nightjar|Nightjar|devel|rule\|with\\pipe break|rule\|with\\pipe break, b=c|10|rt=`) {
		t.Errorf("header: %s", text)
	}
	pairs := parseCEF(t, text)
	for key, want := range map[string]string{"cs3": nasty, "cs4": nasty, "suser": "u|", "sproc": "/x|", "spid": "4", "rawEvent": string(m.Data)} {
		if pairs[key] != want {
			t.Errorf("%s is %q, want %q", key, pairs[key], want)
		}
	}
}

var cefKey = regexp.MustCompile(`(?:^| )([A-Za-z0-9]+)=`)

// parseCEF reads the extension of a line as receivers do: a pair ends where a
// blank, a key and an unescaped = follow.
func parseCEF(t testing.TB, line string) map[string]string {
	t.Helper()
	header := regexp.MustCompile(`^CEF:0(\|(?:[^|\\\n]|\\[|\\])*){6}\|`).FindString(line)
	if header == "" {
		t.Fatalf("no CEF header: %q", line)
	}
	rest := line[len(header):]
	at := cefKey.FindAllStringSubmatchIndex(rest, -1)
	pairs := map[string]string{}
	unescape := strings.NewReplacer(`\\`, `\`, `\=`, `=`, `\n`, "\n", `\r`, "\r")
	for i, m := range at {
		end := len(rest)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		key := rest[m[2]:m[3]]
		if _, twice := pairs[key]; twice {
			t.Errorf("%s is there twice: %s", key, line)
		}
		pairs[key] = unescape.Replace(rest[m[1]:end])
	}
	return pairs
}

// FuzzEncode demands of any event that every format is one valid line.
func FuzzEncode(f *testing.F) {
	for _, m := range alerttest.Samples(f) {
		f.Add(m.Data)
	}
	f.Add([]byte(`{"Event":{"System":{"EventID":1,"Provider":{"Name":"Microsoft-Windows-Sysmon"}},"EventData":{"Image":"=\\|\n"}}}`))
	header := alerttest.Samples(f)[0].Header
	f.Fuzz(func(t *testing.T, data []byte) {
		header.Set(message.HeaderAdded, "0-0")
		a, err := alert.Read(header, data)
		if err != nil {
			return
		}
		for _, f := range []format.Format{format.ECS, format.OCSF, format.CEF} {
			for _, short := range []bool{false, true} {
				line, err := f.Encode(a, short)
				if err != nil {
					t.Fatal(err)
				}
				if bytes.ContainsAny(line, "\n\r") || !utf8.Valid(line) {
					t.Fatalf("%s: %q", f, line)
				}
				if f.JSON() && !json.Valid(line) {
					t.Fatalf("%s: %q", f, line)
				}
			}
		}
	})
}
