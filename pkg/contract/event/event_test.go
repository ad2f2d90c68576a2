package event_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/nightjar-edr/nightjar/pkg/contract/event"
)

func TestScanFindsTheTime(t *testing.T) {
	day := time.Date(2021, 3, 3, 21, 34, 51, 790661600, time.UTC)
	for name, c := range map[string]struct {
		line string
		want time.Time
	}{
		"sysmon":             {`{"Event":{"System":{"TimeCreated":{"SystemTime":"2021-03-03T21:34:51.790661600Z"}}}}`, day},
		"offset":             {`{"Event":{"System":{"TimeCreated":{"SystemTime":"2021-03-03T22:34:51.7906616+01:00"}}}}`, day},
		"kunai":              {`{"data":{},"info":{"utc_time":"2021-03-03T21:34:51.7906616Z"}}`, day},
		"far future":         {`{"Event":{"System":{"TimeCreated":{"SystemTime":"9999-12-31T23:59:59Z"}}}}`, time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)},
		"last member counts": {`{"Event":{},"Event":{"System":{"TimeCreated":{"SystemTime":"x","SystemTime":"2021-03-03T21:34:51.7906616Z"}}}}`, day},
		"last event counts":  {`{"Event":{"System":{"TimeCreated":{"SystemTime":"2021-03-03T21:34:51Z"}}},"Event":{}}`, time.Time{}},
		"escaped names":      {`{"\u0045vent":{"System":{"TimeCreated":{"S\u0079stemTime":"2021-03-03T21:34:51.7906616Z"}}}}`, day},
		"not RFC 3339":       {`{"Event":{"System":{"TimeCreated":{"SystemTime":"4242-04-24 13:37:42.422"}}}}`, time.Time{}},
		"number":             {`{"Event":{"System":{"TimeCreated":{"SystemTime":1614807291}}}}`, time.Time{}},
		"none":               {`{}`, time.Time{}},
		"Event is a list":    {`{"Event":[1]}`, time.Time{}},
	} {
		t.Run(name, func(t *testing.T) {
			info, err := event.Scan([]byte(c.line))
			if err != nil {
				t.Fatal(err)
			}
			if !info.Time.Equal(c.want) || info.Timed() == c.want.IsZero() {
				t.Errorf("time %v, want %v", info.Time, c.want)
			}
		})
	}
}

func TestScanRefuses(t *testing.T) {
	deep := func(n int) string { return `{"a":` + strings.Repeat("[", n) + strings.Repeat("]", n) + `}` }
	for name, c := range map[string]struct {
		line string
		want error
	}{
		"empty":             {``, event.ErrNotJSON},
		"list":              {`[{"a":1}]`, event.ErrNotObject},
		"string":            {`"x"`, event.ErrNotObject},
		"null":              {`null`, event.ErrNotObject},
		"two documents":     {`{}{}`, event.ErrNotJSON},
		"broken off":        {`{"Event":{"System":`, event.ErrNotJSON},
		"control character": {"{\"a\":\"\x01\"}", event.ErrNotJSON},
		"leading zero":      {`{"a":01}`, event.ErrNotJSON},
		"NaN":               {`{"a":NaN}`, event.ErrNotJSON},
		"bad escape":        {`{"a":"\x"}`, event.ErrNotJSON},
		"deepest":           {deep(event.MaxDepth - 1), nil},
		"too deep":          {deep(event.MaxDepth), event.ErrTooDeep},
		"hostile":           {strings.Repeat(`{"a":`, 1<<20), event.ErrTooDeep},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := event.Scan([]byte(c.line)); err != c.want {
				t.Errorf("error %v, want %v", err, c.want)
			}
		})
	}
}

// Every byte at every place of a word of eight, plain, behind a backslash and as
// each digit of \u, and every such string broken off.
func TestStringsAreThoseOfEncodingJSON(t *testing.T) {
	check := func(line string) {
		if _, err := event.Scan([]byte(line)); (err == nil) != json.Valid([]byte(line)) {
			t.Fatalf("%q: Scan says %v", line, err)
		}
	}
	for c := range 256 {
		for place := range 9 {
			before, after := `{"a":"`+strings.Repeat("x", place)+string([]byte{byte(c)}), strings.Repeat("y", 9)+`"}`
			check(before + after)
			check(before)
		}
		for place := range 5 {
			escape := []byte(`\u00eF`)
			escape[1+place] = byte(c)
			for end := range len(escape) + 1 {
				check(`{"a":"xx` + string(escape[:end]) + `"}`)
				check(`{"a":"xx` + string(escape[:end]))
			}
		}
	}
}

func TestAgentMark(t *testing.T) {
	for name, c := range map[string]struct {
		line        string
		signatures  []string
		criticality int
	}{
		"gene":                   {`{"Event":{"GeneInfo":{"Signature":["A","B","A"],"Criticality":7}}}`, []string{"A", "B"}, 7},
		"detection":              {`{"Event":{"Detection":{"Signature":["A"],"Criticality":99}}}`, []string{"A"}, 10},
		"kunai":                  {`{"detection":{"rules":["k"],"severity":-3}}`, []string{"k"}, 0},
		"both places":            {`{"Event":{"Detection":{"Signature":["B"],"Criticality":9},"GeneInfo":{"Signature":["A"],"Criticality":2}}}`, []string{"A", "B"}, 9},
		"no criticality":         {`{"Event":{"GeneInfo":{"Signature":["A"]}}}`, []string{"A"}, 0},
		"criticality a string":   {`{"Event":{"GeneInfo":{"Signature":["A"],"Criticality":"9"}}}`, []string{"A"}, 0},
		"empty list is no mark":  {`{"Event":{"GeneInfo":{"Signature":[],"Criticality":0}}}`, nil, 0},
		"string is no mark":      {`{"Event":{"GeneInfo":{"Signature":"A"}}}`, nil, 0},
		"null is no mark":        {`{"Event":{"GeneInfo":{"Signature":null}}}`, nil, 0},
		"mixed list is no mark":  {`{"Event":{"GeneInfo":{"Signature":["A",null]}}}`, nil, 0},
		"GeneInfo of other type": {`{"Event":{"GeneInfo":["A"]}}`, nil, 0},
		"elsewhere is no mark":   {`{"GeneInfo":{"Signature":["A"]},"Event":{"Detections":{"Signature":["A"]}}}`, nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			info, err := event.Scan([]byte(c.line))
			if err != nil {
				t.Fatal(err)
			}
			mark := event.AgentMark([]byte(c.line), &info)
			if mark == nil {
				mark = &event.Mark{}
			}
			if strings.Join(mark.Signatures, " ") != strings.Join(c.signatures, " ") || mark.Criticality != c.criticality {
				t.Errorf("mark %v %d, want %v %d", mark.Signatures, mark.Criticality, c.signatures, c.criticality)
			}
		})
	}
}

func TestWithGeneInfoKeepsEverythingElse(t *testing.T) {
	detection := event.GeneInfo{Signature: []string{"R<1>"}, Criticality: 8, ATTACK: []event.Attack{{ID: "T1", Tactic: "x", Reference: "r"}}}
	const value = `{"Signature":["R<1>"],"Criticality":8,"ATTACK":[{"ID":"T1","Tactic":"x","Reference":"r"}]}`
	for name, c := range map[string]struct{ line, want string }{
		"added last":     {`{"Event":{"n":1.50, "z":1e400},"x":2}`, `{"Event":{"n":1.50, "z":1e400,"GeneInfo":` + value + `},"x":2}`},
		"empty event":    {`{"Event":{ }}`, `{"Event":{ "GeneInfo":` + value + `}}`},
		"replaced":       {`{"Event":{"GeneInfo":null,"n":1}}`, `{"Event":{"GeneInfo":` + value + `,"n":1}}`},
		"members kept":   {`{"Event":{"GeneInfo":{"Actions":["kill"], "Criticality":1,"Signature":["A"]},"n":1}}`, `{"Event":{"GeneInfo":` + value[:len(value)-1] + `,"Actions":["kill"]},"n":1}}`},
		"no event":       {`{"data":{}} `, `{"data":{},"Event":{"GeneInfo":` + value + `}} `},
		"empty document": {`{}`, `{"Event":{"GeneInfo":` + value + `}}`},
		"event a number": {`{"Event":5}`, `{"Event":5,"Event":{"GeneInfo":` + value + `}}`},
	} {
		t.Run(name, func(t *testing.T) {
			info, err := event.Scan([]byte(c.line))
			if err != nil {
				t.Fatal(err)
			}
			got, err := event.WithGeneInfo([]byte(c.line), &info, detection)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// FuzzScan holds Scan against encoding/json: the same verdict on every input,
// and whatever is added to an event can be cut out again byte by byte.
func FuzzScan(f *testing.F) {
	for _, s := range []string{`{}`, `{"Event":{"EdrData":{"x":1},"GeneInfo":{"Signature":["a"]}}}`, `{"a":[1,2.5e-3,"\u00e9",null]} `, `[1]`, `{"\u0045vent":{}}`, "{\"a\":\"\xff\"}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		info, err := event.Scan(line)
		valid := json.Valid(line)
		if (err == nil || err == event.ErrNotObject) != valid && err != event.ErrTooDeep {
			t.Fatalf("Scan says %v, encoding/json says valid=%v", err, valid)
		}
		if err != nil {
			return
		}
		event.AgentMark(line, &info)
		out, added, sent, err := event.WithEdrData(line, &info, event.EdrData{})
		if err != nil {
			t.Fatal(err)
		}
		if !json.Valid(out) {
			t.Fatalf("not JSON any more: %q", out)
		}
		if back := event.Cut(out, added, sent); string(back) != string(line) {
			t.Fatalf("cut gives %q, want %q", back, line)
		}
		if out, err := event.WithGeneInfo(line, &info, event.GeneInfo{Signature: []string{"s"}}); err != nil || !json.Valid(out) {
			t.Fatalf("with detection: %q %v", out, err)
		}
	})
}

func BenchmarkScan(b *testing.B) {
	line := []byte(`{"Event":{"EventData":{"CommandLine":"\"C:\\Windows\\system32\\cmd.exe\" /c dir","Image":"C:\\Windows\\System32\\cmd.exe","ProcessGuid":"{515cd0d1-00f6-6040-4400-000000005a00}","ProcessId":"2796","User":"NT AUTHORITY\\SYSTEM","UtcTime":"2021-03-03 21:34:46.769"},"System":{"Channel":"Microsoft-Windows-Sysmon/Operational","Computer":"WS-01","EventID":"1","TimeCreated":{"SystemTime":"2021-03-03T21:34:51.790661600Z"}}}}`)
	b.Run("encoding-json-valid", func(b *testing.B) {
		b.SetBytes(int64(len(line)))
		for b.Loop() {
			json.Valid(line)
		}
	})
	b.Run("scan", func(b *testing.B) {
		b.SetBytes(int64(len(line)))
		b.ReportAllocs()
		for b.Loop() {
			if _, err := event.Scan(line); err != nil {
				b.Fatal(err)
			}
		}
	})
}
