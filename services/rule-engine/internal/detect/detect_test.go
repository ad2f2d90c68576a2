package detect

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	contract "github.com/nightjar-edr/nightjar/pkg/contract/event"
	"github.com/nightjar-edr/nightjar/services/rule-engine/internal/rules"
)

const sysmon = "Microsoft-Windows-Sysmon/Operational"

// sampleRules covers every kind of match and of selection.
const sampleRules = `
{"Name":"Words","Tags":["t"],"Meta":{"Events":{"Microsoft-Windows-Sysmon/Operational":[1,5]},"Criticality":6,"Schema":"2.0.0","ATTACK":[{"ID":"T1","Tactic":"x","Reference":"r"},{"ID":"T2","Tactic":"y","Reference":"s"}]},"Matches":["$a: Image ~= '(?i:\\\\(cmd|powershell)\\.exe$)'","$b: CommandLine ~= '(?is:-enc|mimikatz)'"],"Condition":"$a and $b","Actions":["kill","report"]}
{"Name":"Negated","Meta":{"Events":{"Microsoft-Windows-Sysmon/Operational":[]},"Criticality":7,"Schema":"2.0.0","ATTACK":[{"ID":"T2","Tactic":"z","Reference":"u"}]},"Matches":["$a: Image = 'C:\\Windows\\explorer.exe'","$b: User ~= 'SYSTEM'"],"Condition":"!($a or $b)","Actions":["report"]}
{"Name":"Filter","Meta":{"Events":{"Microsoft-Windows-Sysmon/Operational":[1]},"Filter":true,"Criticality":10,"Schema":"2.0.0"},"Matches":[],"Condition":""}
{"Name":"Numbers","Meta":{"Events":{"Security":[],"Microsoft-Windows-Sysmon/Operational":[10]},"Criticality":1,"Schema":"2.0.0"},"Matches":["$lo: Number >= '0x10'","$hi: Number < '20.5'","$bits: Mask &= '0x14'","$gt: Number > '3'","$le: Number <= '18'"],"Condition":"($lo and $hi and $gt and $le) or $bits"}
{"Name":"SameField","Meta":{"Criticality":2,"Schema":"2.0.0"},"Matches":["$a: SourceGuid = @TargetGuid"],"Condition":"$a"}
{"Name":"Odd","Meta":{"Criticality":3,"Schema":"2.0.0"},"Matches":["$a: \"Nested/Deep\" = 'x'","$b: \"\" ~= 'map'"],"Condition":"$a or ($b and $a)"}
{"Name":"Quoted","Meta":{"Criticality":3,"Schema":"2.0.0"},"Matches":["$a: \"Field With Blanks\" ~= '^(?i:key|stop)$'"],"Condition":"$a"}
{"Name":"Regexp","Meta":{"Schema":"2.0.0","Criticality":4,"Computers":["HOST1","HOST2"]},"Matches":["$a: CommandLine ~= '(?i:power.*-e[nc]+ [A-Za-z0-9+/=]{8,})'","$b: CommandLine ~= '.{60,}'"],"Condition":"$a or $b"}
{"Name":"Containers","Meta":{"Schema":"2.0.0","Criticality":9},"Matches":["$a: extract('MD5=(?P<md5>[A-Fa-f0-9]{4})', Hashes) in bad","$b: extract('(x)|(?P<none>y)', Hashes) in bad"],"Condition":"$a or $b"}
{"Name":"OtherChannel","Meta":{"Events":{"":[0],"map[]":[]},"Schema":"2.0.0","Criticality":2},"Matches":["$a: Image ~= '.'"],"Condition":"!$a"}
{"Name":"AnyValue","Meta":{"Events":{"Security":[4624]},"Schema":"2.0.0"},"Matches":["$a: Image ~= ''"],"Condition":"$a"}
{"Name":"Adjacent","Meta":{"Events":{"Microsoft-Windows-Sysmon/Operational":[1]},"Schema":"2.0.0","Criticality":1},"Matches":["$a: Image ~= 'cmd'","$b: User ~= 'bob'"],"Condition":"$a $b"}
{"Name":"OldForm","Meta":{"EventIDs":[1,4624],"Channels":["Security","Microsoft-Windows-Sysmon/Operational"],"Criticality":3},"Matches":["$a: User = 'bob'"],"Condition":"$a"}
`

var sampleContainers = map[string][]string{"bad": {"ABCD", "ffff", ""}}

// drawJSON draws a JSON value.
func drawJSON(t *rapid.T, depth int) string {
	words := []string{
		`"C:\\Windows\\explorer.exe"`, `"C:\\Windows\\System32\\CMD.exe"`, `"c:\\x\\PowerShell.exe"`, `"powershell -ENC aGVsbG8gd29ybGQ="`,
		`"invoke-mimi\u006batz"`, `"\u212aey"`, `"STOP"`, `"\u017ftop"`, `"x"`, `""`, `"bob"`, `"NT AUTHORITY\\SYSTEM"`, `"MD5=ABCD"`, `"MD5=abcd,y"`, `"y"`,
		`"{1}"`, `"{2}"`, `17`, `"0x11"`, `"17.5"`, `"1_7"`, `3`, `20`, `"nan"`, `"0x1C"`, `28`, `-1`, `1e3`, `1e999`, `true`, `null`, `{}`, `[]`, `["x"]`, "\"\xff\"",
		`"` + strings.Repeat("long ", 20) + `"`,
	}
	if depth > 0 && rapid.IntRange(0, 7).Draw(t, "nest") == 0 {
		return drawObject(t, depth-1, []string{"Deep", "x", "Image"})
	}
	return rapid.SampledFrom(words).Draw(t, "value")
}

func drawObject(t *rapid.T, depth int, names []string) string {
	var b strings.Builder
	b.WriteByte('{')
	for i := range rapid.IntRange(0, len(names)+1).Draw(t, "members") {
		if i > 0 {
			b.WriteString(rapid.SampledFrom([]string{",", " ,\n", ", "}).Draw(t, "comma"))
		}
		fmt.Fprintf(&b, `"%s"%s`, rapid.SampledFrom(names).Draw(t, "name"), rapid.SampledFrom([]string{":", " : "}).Draw(t, "colon"))
		b.WriteString(drawJSON(t, depth))
	}
	b.WriteByte('}')
	return b.String()
}

// drawEvent draws an event, mostly of the usual shape, members twice and escaped
// names included.
func drawEvent(t *rapid.T) string {
	fields := []string{
		"Image", "CommandLine", "User", "Number", "Mask", "SourceGuid", "TargetGuid", "Nested", "Field With Blanks", "Hashes", `Im\u0061ge`, "image", "Other", "",
	}
	system := func() string {
		return fmt.Sprintf(`{"Channel":%s,"Computer":%s,"Execution":{"Channel":"x"},"EventID":%s}`,
			rapid.SampledFrom([]string{`"` + sysmon + `"`, `"` + sysmon + `"`, `"Security"`, `"Microsoft-Windows-Sysmon\/Operational"`, `"Other"`, `{}`, `null`, `""`}).Draw(t, "channel"),
			rapid.SampledFrom([]string{`"HOST1"`, `"HOST3"`, `null`}).Draw(t, "computer"),
			rapid.SampledFrom([]string{`"1"`, `1`, `5`, `"10"`, `"4624"`, `"0x1"`, `"01"`, `"1_0"`, `{"Value":1}`, `null`, `""`, `-1`, `"99999999999"`, `1.0`, `1e0`}).Draw(t, "id"))
	}
	part := func() string {
		switch rapid.IntRange(0, 11).Draw(t, "part") {
		case 0:
			return `"Other":` + drawJSON(t, 2)
		case 1:
			return `"EventData":` + drawJSON(t, 2)
		case 2:
			return `"System":` + drawJSON(t, 2)
		case 3:
			return `"\u0053ystem":` + system()
		case 4, 5, 6:
			return `"System":` + system()
		}
		return `"EventData":` + drawObject(t, 2, fields)
	}
	event := func() string {
		var parts []string
		for range rapid.IntRange(0, 4).Draw(t, "parts") {
			parts = append(parts, part())
		}
		if rapid.Bool().Draw(t, "usual") {
			parts = append(parts, `"EventData":`+drawObject(t, 1, fields[:4]), `"System":`+system())
		}
		return "{" + strings.Join(parts, ",") + "}"
	}
	var parts []string
	for range rapid.SampledFrom([]int{0, 1, 1, 1, 1, 1, 2}).Draw(t, "events") {
		parts = append(parts, `"Event":`+event())
	}
	if rapid.IntRange(0, 5).Draw(t, "extra") == 0 {
		parts = append(parts, rapid.SampledFrom([]string{`"event":{}`, `"Event":null`, `"x":[{"Event":1}]`}).Draw(t, "part"))
	}
	return rapid.SampledFrom([]string{"", " "}).Draw(t, "lead") + "{" + strings.Join(parts, ",") + "}" + rapid.SampledFrom([]string{"", "\r\n"}).Draw(t, "trail")
}

func TestDetectAgainstGene(t *testing.T) {
	list := mustParse(t, sampleRules)
	set := mustCompile(t, list, sampleContainers)
	reference := newPlain(t, list, sampleContainers)
	w := set.NewWorker()
	rapid.Check(t, func(t *rapid.T) {
		line := drawEvent(t)
		if !json.Valid([]byte(line)) {
			t.Fatalf("not JSON: %s", line)
		}
		got, want := outline(w.Detect([]byte(line))), outline(reference.detect([]byte(line)))
		if got != want {
			t.Fatalf("%s\n got %s\nwant %s", line, got, want)
		}
	})
}

// TestRandomRulesAgainstGene draws the rules too.
func TestRandomRulesAgainstGene(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var text strings.Builder
		for i := range rapid.IntRange(1, 6).Draw(t, "rules") {
			var matches []string
			operands := rapid.IntRange(1, 4).Draw(t, "matches")
			for k := range operands {
				field := rapid.SampledFrom([]string{"Image", "CommandLine", "User", "Number", `"Nested/Deep"`}).Draw(t, "field")
				matches = append(matches, fmt.Sprintf("$m%d: %s %s", k, field, rapid.SampledFrom([]string{
					`= 'x'`, `= 'bob'`, `~= '(?i:cmd|shell)'`, `~= '(?i:^c:\\.*\.exe$)'`, `~= 'SYSTEM$'`, `~= '^$'`, `~= 'a'`, `>= '17'`, `&= '1'`, `= @User`, `~= '[^x]'`, `~= '?i:(STOP)'`,
				}).Draw(t, "match")))
			}
			b, _ := json.Marshal(map[string]any{
				"Name": fmt.Sprintf("R%d", i),
				"Meta": map[string]any{
					"Schema":      "2.0.0",
					"Criticality": rapid.IntRange(0, 12).Draw(t, "criticality"),
					"Filter":      rapid.IntRange(0, 5).Draw(t, "filter") == 0,
					"Events": rapid.SampledFrom([]map[string][]int{
						nil, {sysmon: {1}}, {sysmon: {}}, {"Security": {0, 1, 10}, sysmon: {5}}, {"": {}},
					}).Draw(t, "events"),
				},
				"Matches":   matches,
				"Condition": drawCondition(t, 2, operands),
			})
			text.Write(b)
		}
		list, err := rules.Parse([]byte(text.String()), nil)
		if err != nil {
			t.Fatalf("%v\n%s", err, text.String())
		}
		set, _, err := Compile(list, nil)
		if err != nil {
			t.Fatal(err)
		}
		reference := newPlain(t, list, nil)
		w := set.NewWorker()
		for range 5 {
			line := drawEvent(t)
			got, want := outline(w.Detect([]byte(line))), outline(reference.detect([]byte(line)))
			if got != want {
				t.Fatalf("%s\n%s\n got %s\nwant %s", text.String(), line, got, want)
			}
		}
	})
}

func FuzzDetect(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"Event":{"EventData":{"Image":"C:\\cmd.exe","CommandLine":"-enc"},"System":{"Channel":"Security","EventID":4624}}}`,
		`{"Event":{"System":{"Channel":"` + sysmon + `","EventID":"1"},"EventData":{"Image":"x","Im\u0061ge":[1]}}}`,
		`{"Event":{"EventData":{"SourceGuid":1,"TargetGuid":1.0,"Nested":{"Deep":"x"}}},"Event":{}}`,
		"\x00{", `[{"Event":1}]`, `{"Event":{"EventData":{"":"\ud800"}}`,
	} {
		f.Add([]byte(s))
	}
	list, err := rules.Parse([]byte(sampleRules), nil)
	if err != nil {
		f.Fatal(err)
	}
	reference := newPlain(f, list, sampleContainers)
	set, _, err := Compile(list, linesOf(sampleContainers), WithPanicHandler(func(rule string, v any) { panic(fmt.Sprint(rule, ": ", v)) }))
	if err != nil {
		f.Fatal(err)
	}
	w := set.NewWorker()
	f.Fuzz(func(t *testing.T, line []byte) {
		d := w.Detect(line)
		if !json.Valid(line) || line[0] != '{' {
			return
		}
		if info, err := contract.Scan(line); err == nil && d.Unmarked && contract.AgentMark(line, &info) != nil {
			t.Errorf("%s has a mark", line)
		}
		if got, want := outline(d), outline(reference.detect(line)); got != want {
			t.Errorf("%s\n got %s\nwant %s", line, got, want)
		}
	})
}

func eventLine(channel string, id int, fields string) []byte {
	return fmt.Appendf(nil, `{"Event":{"EventData":{%s},"System":{"Channel":%q,"EventID":"%d","Computer":"HOST1"}}}`, fields, channel, id)
}

func TestDetection(t *testing.T) {
	set := mustCompile(t, mustParse(t, sampleRules), sampleContainers)
	w := set.NewWorker()
	line := eventLine(sysmon, 1, `"Image":"C:\\cmd.exe","CommandLine":"x -ENC y"`)
	d := w.Detect(line)
	want := Detection{
		Signatures:  []string{"Words", "Negated"},
		Criticality: 10,
		ATTACK: []Attack{
			{ID: "T1", Tactic: "x", Reference: "r"},
			{ID: "T2", Tactic: "y", Reference: "s"},
		},
		Actions:  []string{"kill", "report"},
		Filtered: true, Unmarked: true,
		Rules: []RuleInfo{
			{Name: "Words", Criticality: 6, ATTACK: []Attack{{ID: "T1", Tactic: "x", Reference: "r"}, {ID: "T2", Tactic: "y", Reference: "s"}}},
			{Name: "Negated", Criticality: 7, ATTACK: []Attack{{ID: "T2", Tactic: "z", Reference: "u"}}},
		},
	}
	if !reflect.DeepEqual(d, want) {
		t.Errorf("got\n%+v\nwant\n%+v", d, want)
	}
	clear(line)
	if !reflect.DeepEqual(d, want) {
		t.Error("the detection changed with the line")
	}
	filtered := w.Detect(eventLine(sysmon, 1, `"User":"SYSTEM"`))
	if !reflect.DeepEqual(filtered, Detection{Filtered: true, Unmarked: true}) || filtered.Alert() {
		t.Errorf("got %+v", filtered)
	}
	for _, line := range []string{"", " ", "null", "7", `"x"`, "[]", "{", `{"Event"`, `{"Event":{"EventData":{"Image":"`, "not json"} {
		if d := w.Detect([]byte(line)); !reflect.DeepEqual(d, Detection{}) {
			t.Errorf("%q: got %+v", line, d)
		}
	}
}

// An event without the members of an agent's mark is told from one that may have a
// mark, however its names are written. What is not read whole is no such event.
func TestUnmarked(t *testing.T) {
	w := mustCompile(t, mustParse(t, sampleRules), sampleContainers).NewWorker()
	for line, want := range map[string]bool{
		`{"Event":{"EventData":{"GeneInfo":{},"Detection":{}},"System":{"Channel":"A"}},"other":1}`: true,
		`{}`:                                         true,
		`{"Event":7}`:                                true,
		`{"Event":{"GeneInfo":{}}}`:                  false,
		`{"Event":{"\u0047eneInfo":{}}}`:             false,
		`{"Event":{"GeneInfo":{}},"Event":{}}`:       false,
		`{"Event":{"Detection":null}}`:               false,
		`{"detection":{"rules":["a"]},"info":{}}`:    false,
		`{"\u0064etection":{"rules":["a"]}}`:         false,
		`{"Event":{}} {"detection":{"rules":["a"]}}`: false,
		`{"Event":{}`:                                false,
		`[]`:                                         false,
	} {
		if got := w.Detect([]byte(line)).Unmarked; got != want {
			t.Errorf("%s: unmarked %t", line, got)
		}
	}
}

// TestIDsOnAnyChannel covers what gene v2 cannot express.
func TestIDsOnAnyChannel(t *testing.T) {
	set := mustCompile(t, mustParse(t, `
		{"Name":"Any","Meta":{"EventIDs":[7,8]},"Matches":["$a: Image ~= 'cmd'"],"Condition":"$a"}
		{"Name":"All","Meta":{"Channels":["A","B"],"EventIDs":[7]}}`), nil)
	w := set.NewWorker()
	for _, tc := range []struct {
		channel string
		id      int
		want    []string
	}{
		{"A", 7, []string{"Any", "All"}}, {"B", 8, []string{"Any"}}, {"C", 7, []string{"Any"}}, {"A", 9, nil}, {"", 8, []string{"Any"}},
	} {
		if d := w.Detect(eventLine(tc.channel, tc.id, `"Image":"cmd"`)); !slices.Equal(d.Signatures, tc.want) {
			t.Errorf("%s %d: got %v, want %v", tc.channel, tc.id, d.Signatures, tc.want)
		}
	}
}

func TestWaiting(t *testing.T) {
	list := mustParse(t, `
		{"Name":"Two","Meta":{"Criticality":4},"Matches":["$a: extract('(?P<x>\\w+)', F) in zz","$b: extract('(?P<x>\\w+)', F) in aa","$c: extract('(?P<x>\\w+)', F) in here"],"Condition":"$a or $c"}
		{"Name":"Off","Meta":{"Disable":true}}
		{"Name":"Not","Matches":["$a: extract('(?P<x>\\w+)', F) in here"],"Condition":"!$a"}`)
	set, waiting, err := Compile(list, map[string]Lines{"here": nil})
	if err != nil {
		t.Fatal(err)
	}
	want := []Waiting{{Rule: "Two", Containers: []string{"aa", "zz"}}}
	if !reflect.DeepEqual(waiting, want) || !reflect.DeepEqual(set.Waiting(), want) {
		t.Errorf("waiting %+v", waiting)
	}
	if set.Count() != 2 {
		t.Errorf("%d rules counted", set.Count())
	}
	if info, ok := set.Info("Two"); !ok || info.Criticality != 4 {
		t.Errorf("info of a waiting rule: %+v, %t", info, ok)
	}
	if _, ok := set.Info("Off"); ok {
		t.Error("a disabled rule has info")
	}
	if d := set.NewWorker().Detect(eventLine("c", 1, `"F":"x"`)); !slices.Equal(d.Signatures, []string{"Not"}) {
		t.Errorf("got %v", d.Signatures)
	}
	set = mustCompile(t, list, map[string][]string{"here": nil, "aa": nil, "zz": {"X"}})
	if d := set.NewWorker().Detect(eventLine("c", 1, `"F":"x"`)); !slices.Equal(d.Signatures, []string{"Two", "Not"}) {
		t.Errorf("with all containers: got %v", d.Signatures)
	}
}

func TestCompileErrors(t *testing.T) {
	one := mustParse(t, `{"Name":"A"}`)
	if _, _, err := Compile(append(one, one...), nil); !errors.Is(err, rules.ErrExists) {
		t.Errorf("got error %v", err)
	}
	if _, _, err := Compile(make([]*rules.Rule, rules.MaxRules+1), nil); !errors.Is(err, rules.ErrTooLarge) {
		t.Errorf("got error %v", err)
	}
	set, _, err := Compile(nil, nil)
	if err != nil || set.Count() != 0 {
		t.Errorf("an empty set: %v", err)
	}
	if d := set.NewWorker().Detect(eventLine("c", 1, "")); d.Alert() {
		t.Errorf("got %v", d)
	}
}

// TestPanicSetsOneRuleAside breaks a compiled rule, which no input can do.
func TestPanicSetsOneRuleAside(t *testing.T) {
	var (
		mu       sync.Mutex
		reported []string
	)
	set, _, err := Compile(mustParse(t, sampleRules), linesOf(sampleContainers), WithPanicHandler(func(rule string, v any) {
		mu.Lock()
		defer mu.Unlock()
		reported = append(reported, rule)
	}))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range set.rules {
		if r.info.Name == "Negated" {
			r.program = &program{start: 1 << 20}
		}
	}
	line := eventLine(sysmon, 1, `"Image":"C:\\cmd.exe","CommandLine":"x -ENC y"`)
	var wg sync.WaitGroup
	for range 4 {
		w := set.NewWorker()
		wg.Go(func() {
			for range 10 {
				if d := w.Detect(line); !slices.Equal(d.Signatures, []string{"Words"}) {
					t.Errorf("got %v", d.Signatures)
				}
			}
		})
	}
	wg.Wait()
	if !slices.Equal(reported, []string{"Negated"}) {
		t.Errorf("reported %v", reported)
	}
}

// TestConcurrentWorkers has workers of one set agree with one that works alone,
// container rules above all.
func TestConcurrentWorkers(t *testing.T) {
	set := mustCompile(t, mustParse(t, sampleRules), sampleContainers)
	var lines [][]byte
	var want []string
	alone := set.NewWorker()
	for i := range 200 {
		line := eventLine(sysmon, i%3, fmt.Sprintf(`"Hashes":"MD5=%04x","Image":"C:\\cmd.exe","CommandLine":"%d -enc"`, 0xfff0+i%16, i))
		lines = append(lines, line)
		want = append(want, outline(alone.Detect(line)))
	}
	var wg sync.WaitGroup
	for k := range 4 {
		w := set.NewWorker()
		wg.Go(func() {
			for i := range 1000 {
				n := (i*7 + k) % len(lines)
				if got := outline(w.Detect(lines[n])); got != want[n] {
					t.Errorf("line %d: got %s, want %s", n, got, want[n])
					return
				}
			}
		})
	}
	wg.Wait()
}

// TestHostileEvents has events that are large or deep. Nesting beyond what
// encoding/json decodes does not hide the rest of an event.
func TestHostileEvents(t *testing.T) {
	set := mustCompile(t, mustParse(t, sampleRules), sampleContainers)
	w := set.NewWorker()
	fields := `"Image":"C:\\cmd.exe","CommandLine":"x -ENC y"`
	deep := strings.Repeat("[", 2<<20) + strings.Repeat("]", 2<<20)
	for name, line := range map[string]string{
		"deep":       `{"x":` + deep + `,"Event":{"EventData":{` + fields + `},"System":{"Channel":"` + sysmon + `","EventID":1}}}`,
		"deep field": `{"Event":{"EventData":{"Nested":` + deep + `,` + fields + `},"System":{"Channel":"` + sysmon + `","EventID":1}}}`,
		"long":       `{"Event":{"EventData":{"Other":"` + strings.Repeat(`\\\"`, 1<<20) + `",` + fields + `},"System":{"Channel":"` + sysmon + `","EventID":1}}}`,
		"repeats":    `{"Event":{"EventData":{` + fields + strings.Repeat(`,"Image":"C:\\cmd.exe"`, 1<<16) + `},"System":{"Channel":"` + sysmon + `","EventID":1}}}`,
	} {
		t.Run(name, func(t *testing.T) {
			if d := w.Detect([]byte(line)); !slices.Equal(d.Signatures, []string{"Words", "Negated"}) {
				t.Errorf("got %v", d.Signatures)
			}
			if kept := cap(w.event.buf); kept > maxKept {
				t.Errorf("%d bytes kept", kept)
			}
			for i, v := range w.event.values {
				if v.raw != nil || v.text != nil || v.folded != nil {
					t.Errorf("field %d of the event is kept", i)
				}
			}
		})
	}
	if d := w.Detect([]byte(deep)); d.Alert() {
		t.Errorf("got %v", d)
	}
}

func TestGenerationWraps(t *testing.T) {
	set := mustCompile(t, mustParse(t, sampleRules), sampleContainers)
	w := set.NewWorker()
	hit := eventLine(sysmon, 1, `"Image":"C:\\cmd.exe","CommandLine":"x -ENC y"`)
	miss := eventLine(sysmon, 1, `"Image":"C:\\Windows\\explorer.exe","CommandLine":"x"`)
	w.Detect(hit)
	w.gen = maxGen - 2
	for i := range 6 {
		if d := w.Detect(hit); len(d.Signatures) != 2 {
			t.Errorf("step %d: got %v", i, d.Signatures)
		}
		if d := w.Detect(miss); d.Alert() {
			t.Errorf("step %d: got %v", i, d.Signatures)
		}
	}
}
