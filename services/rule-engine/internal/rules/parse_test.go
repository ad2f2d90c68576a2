package rules

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func parseOne(t *testing.T, text string) *Rule {
	t.Helper()
	list, err := Parse([]byte(text), nil)
	if err != nil {
		t.Fatalf("Parse: %v", err)
	}
	if len(list) != 1 {
		t.Fatalf("%d rules, want 1", len(list))
	}
	return list[0]
}

func TestTextIsWhatManagersList(t *testing.T) {
	tests := []struct {
		name, in, want string
	}{
		{
			"v1, everything given",
			`{"Name":"A","Tags":["WHIDS"],"Meta":{"EventIDs":[1],"Channels":["Microsoft-Windows-Sysmon/Operational"],"Computers":[],"ATTACK":[{"ID":"T1093","Tactic":"defense-evasion","Reference":"https://attack.mitre.org/techniques/T1093"}],"Criticality":10,"Disable":false,"Filter":false},"Matches":["$a: ProcessIntegrity >= '50'","$b: ParentProcessIntegrity >= '50'"],"Condition":"$a or $b"}`,
			`{"Name":"A","Tags":["WHIDS"],"Meta":{"EventIDs":[1],"Channels":["Microsoft-Windows-Sysmon/Operational"],"Computers":[],"ATTACK":[{"ID":"T1093","Tactic":"defense-evasion","Reference":"https://attack.mitre.org/techniques/T1093"}],"Criticality":10,"Disable":false,"Filter":false},"Matches":["$a: ProcessIntegrity \u003e= '50'","$b: ParentProcessIntegrity \u003e= '50'"],"Condition":"$a or $b","Actions":null}`,
		},
		{
			"v1, members absent",
			`{"Name":"A","Meta":{"EventIDs":[1],"Channels":["c"]},"Matches":["$a: Image = 'x'"],"Condition":"$a"}`,
			`{"Name":"A","Tags":null,"Meta":{"EventIDs":[1],"Channels":["c"],"Computers":null,"Criticality":0,"Disable":false,"Filter":false},"Matches":["$a: Image = 'x'"],"Condition":"$a","Actions":null}`,
		},
		{
			"v1, traces and unknown members",
			`{"Condition":"", "Comment":"x", "Name":"A","Meta":{"Traces":["a"],"Author":"x","ATTACK":[]}}`,
			`{"Name":"A","Tags":null,"Meta":{"EventIDs":null,"Channels":null,"Computers":null,"Traces":["a"],"Criticality":0,"Disable":false,"Filter":false},"Matches":null,"Condition":"","Actions":null}`,
		},
		{
			"severity is read as criticality",
			`{"Name":"A","Meta":{"Severity":7}}`,
			`{"Name":"A","Tags":null,"Meta":{"EventIDs":null,"Channels":null,"Computers":null,"Criticality":7,"Disable":false,"Filter":false},"Matches":null,"Condition":"","Actions":null}`,
		},
		{
			"criticality wins over severity",
			`{"Name":"A","Meta":{"Severity":7,"Criticality":0}}`,
			`{"Name":"A","Tags":null,"Meta":{"EventIDs":null,"Channels":null,"Computers":null,"Criticality":0,"Disable":false,"Filter":false},"Matches":null,"Condition":"","Actions":null}`,
		},
		{
			"v2",
			`{"Name":"A","Tags":[],"Meta":{"Schema":"2.0.0","Events":{"b":[2,1],"a":[]},"Criticality":5},"Matches":[],"Condition":"","Actions":["kill"]}`,
			`{"Name":"A","Tags":[],"Meta":{"Events":{"a":[],"b":[2,1]},"Computers":null,"Criticality":5,"Disable":false,"Filter":false,"Schema":"2.0.0"},"Matches":[],"Condition":"","Actions":["kill"]}`,
		},
		{
			"v2 by its schema alone",
			`{"Name":"A","Meta":{"Schema":"2.0.0","EventIDs":[1],"Channels":["c"]}}`,
			`{"Name":"A","Tags":null,"Meta":{"Events":null,"Computers":null,"Criticality":0,"Disable":false,"Filter":false,"Schema":"2.0.0"},"Matches":null,"Condition":"","Actions":null}`,
		},
		{
			"v1 with a schema below 2",
			`{"Name":"A","Meta":{"Schema":"1.0.0","EventIDs":[1]}}`,
			`{"Name":"A","Tags":null,"Meta":{"EventIDs":[1],"Channels":null,"Computers":null,"Criticality":0,"Disable":false,"Filter":false},"Matches":null,"Condition":"","Actions":null}`,
		},
		{
			"blanks in the condition",
			"{\"Name\":\"A\",\"Matches\":[\"$a: Image = 'x'\"],\"Condition\":\"  $a  and\\t( $a ) \"}",
			`{"Name":"A","Tags":null,"Meta":{"EventIDs":null,"Channels":null,"Computers":null,"Criticality":0,"Disable":false,"Filter":false},"Matches":["$a: Image = 'x'"],"Condition":"$a and ( $a )","Actions":null}`,
		},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			r := parseOne(t, tc.in)
			if r.Text() != tc.want {
				t.Errorf("Text:\n got %s\nwant %s", r.Text(), tc.want)
			}
			again := parseOne(t, r.Text())
			if again.Text() != r.Text() || again.Form != r.Form {
				t.Errorf("parsing the text again gives %s (%s)", again.Text(), again.Form)
			}
			whole, err := json.Marshal(map[string]any{"data": []json.RawMessage{r.Raw()}})
			if err != nil || string(whole) != `{"data":[`+tc.want+`]}` {
				t.Errorf("embedded in a document: %s, %v", whole, err)
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	const ok = `{"Name":"Fine","Matches":["$a: Image = 'x'"],"Condition":"$a"}`
	tests := []struct {
		name, in, want string
		is             error
	}{
		{"empty", "", "no rule given", ErrEmpty},
		{"blanks only", " \n\t ", "no rule given", ErrEmpty},
		{"empty object", "{}", "rule without a name (rule line=1 offset=0)", ErrNoName},
		{"blank name", `{"Name":" "}`, "rule without a name (rule line=1 offset=0)", ErrNoName},
		{"null", "null", "rule without a name", ErrNoName},
		{"cut off", `{"Name": "Broken", ` + "\n", "JSON parsing (rule line=1 offset=0) (error=unexpected EOF)", nil},
		{"array", `["x"]`, "JSON parsing (rule line=1 offset=5) (error=json: cannot unmarshal array into Go value of type rules.Rule)", nil},
		{"string", `"x"`, "JSON parsing (rule line=1 offset=3) (error=json: cannot unmarshal string into Go value of type rules.Rule)", nil},
		{"member type", `{"Name":"BadType","Meta":{"EventIDs":["1"]}}`, "JSON parsing (rule line=1 offset=0) (error=json: cannot unmarshal string into Go struct field MetaSection.Meta.EventIDs of type int64)", nil},
		{"name type", `{"Name":1}`, "JSON parsing (rule line=1 offset=0) (error=json: cannot unmarshal number into Go struct field Rule.Name of type string)", nil},
		{"meta type", `{"Name":"x","Meta":[]}`, "JSON parsing (rule line=1 offset=0) (error=json: cannot unmarshal array into Go struct field Rule.Meta of type rules.MetaSection)", nil},
		{"attack type", `{"Name":"x","Meta":{"ATTACK":[{"ID":1}]}}`, "JSON parsing (rule line=1 offset=0) (error=json: cannot unmarshal number into Go struct field Attack.Meta.ATTACK.ID of type string)", nil},
		{"second rule broken", ok + "\n\n" + `{"Name":`, "JSON parsing (rule line=3 offset=64) (error=unexpected EOF)", nil},
		{"match", `{"Name":"BadMatch","Meta":{"EventIDs":[1],"Channels":["c"]},"Matches":["this is no match"],"Condition":"$a"}`, `Failed to compile rule (rule line=1 offset=0) (error=Unknown match statement: this is no match) in rule "BadMatch"`, nil},
		{"operand", `{"Name":"BadCond","Meta":{"EventIDs":[1],"Channels":["c"]},"Matches":["$a: Image = 'x'"],"Condition":"$a and $b"}`, `Failed to compile rule (rule line=1 offset=0) (error=Unkown operand $b in condition "$a and $b") in rule "BadCond"`, nil},
		{"regexp", `{"Name":"BadRex","Meta":{"EventIDs":[1],"Channels":["c"]},"Matches":["$a: Image ~= '(x'"],"Condition":"$a"}`, `Failed to compile rule (rule line=1 offset=0) (error=Failed to compile "$a: Image ~= '(x'") in rule "BadRex": error parsing regexp: missing closing ): ` + "`((x)`", nil},
		{"number", `{"Name":"N","Matches":["$a: Image > 'x'"],"Condition":"$a"}`, `(error=Failed to compile "$a: Image > 'x'") in rule "N"`, nil},
		{"bits", `{"Name":"N","Matches":["$a: Image &= 'x'"],"Condition":"$a"}`, `(error=Failed to compile "$a: Image &= 'x'") in rule "N"`, nil},
		{"extract regexp", `{"Name":"N","Matches":["$a: extract('(?P<x>[)', F) in c"],"Condition":"$a"}`, `(error=Failed to compile "$a: extract('(?P<x>[)', F) in c") in rule "N": error parsing regexp`, nil},
		{"extract group", `{"Name":"N","Matches":["$a: extract('[(?P<x>)](y)', F) in c"],"Condition":"$a"}`, `the expression has no group named "x"`, nil},
		{"operand undefined in second rule", ok + ` {"Name":"Bad","Condition":"$z"}`, `Failed to compile rule (rule line=1 offset=63) (error=Unkown operand $z in condition "$z") in rule "Bad"`, nil},
		{"two matches of one name", `{"Name":"N","Matches":["$a: Image = 'x'","$a: Image = 'y'"],"Condition":"$a"}`, `(error=Match $a is defined twice: $a: Image = 'y') in rule "N"`, nil},
		{"two rules of one name", ok + ok, `Rule "Fine" already exists`, ErrExists},
		{"no condition", `{"Name":"N","Matches":["$a: Image = 'x'"]}`, `Failed to parse condition "": the rule has matches and an empty condition`, nil},
		{"negative criticality", `{"Name":"N","Meta":{"Criticality":-1}}`, "Criticality -1 is negative", nil},
		{"v2 without schema", `{"Name":"N","Meta":{"Events":{"c":[1]}}}`, "Expecting rule version >= 2.0.0", nil},
		{"control character", `{"Name":"a\nb"}`, "control character", nil},
		{"long name", `{"Name":"` + strings.Repeat("n", MaxNameSize+1) + `"}`, "too large", ErrTooLarge},
		{"large rule", `{"Name":"n","Tags":["` + strings.Repeat("n", MaxRuleSize) + `"]}`, "too large", ErrTooLarge},
		{"large regexp", `{"Name":"n","Matches":["$a: F ~= '` + strings.Repeat("n", MaxRegexpSize+1) + `'"],"Condition":"$a"}`, "too large", ErrTooLarge},
		{"large condition", `{"Name":"n","Matches":["$a: F = 'x'"],"Condition":"` + strings.Repeat("(", MaxConditionSize+1) + `"}`, "too large", ErrTooLarge},
		{"many tokens", `{"Name":"n","Matches":["$a: F = 'x'"],"Condition":"` + strings.Repeat("!", maxConditionTokens+1) + `$a"}`, "too large", ErrTooLarge},
		{"many selections", fmt.Sprintf(`{"Name":"n","Meta":{"Channels":[%s""],"EventIDs":[%s1]}}`, strings.Repeat(`"",`, 300), strings.Repeat("1,", 300)), "too large", ErrTooLarge},
		{"unknown template", `{"Name":"N","Matches":["$a: Image ~= '{{nope}}'"],"Condition":"$a"}`, `(error=Unknown template {{nope}} in $a: Image ~= '{{nope}}') in rule "N"`, ErrTemplate},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			list, err := Parse([]byte(tc.in), nil)
			if err == nil {
				t.Fatalf("accepted: %s", list[0].Text())
			}
			if list != nil {
				t.Errorf("%d rules beside the error", len(list))
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error\n got %s\nwant %s", err, tc.want)
			}
			if tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("error %v is not %v", err, tc.is)
			}
			if len(err.Error()) > 4096 {
				t.Errorf("error of %d bytes", len(err.Error()))
			}
		})
	}
}

func TestCompileErrorNamesTheStatement(t *testing.T) {
	_, err := Parse([]byte(`{"Name":"R","Matches":["$a: Image = 'x'","nonsense"],"Condition":"$a"}`), nil)
	var ce *CompileError
	if !errors.As(err, &ce) {
		t.Fatalf("error is %T", err)
	}
	if ce.Rule != "R" || ce.Statement != "nonsense" || ce.Line != 1 {
		t.Errorf("got %+v", ce)
	}
}

func TestParseManyRules(t *testing.T) {
	list, err := ParseReader(strings.NewReader("\n{\"Name\":\"a\"} {\"Name\":\"b\"}\n\n  {\"Name\":\"c\",\n\"Meta\":{}}{\"Name\":\"d\"}\n"), nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range list {
		got = append(got, fmt.Sprintf("%s:%d:%d", r.Name, r.Line, r.Offset))
	}
	if want := []string{"a:2:1", "b:2:14", "c:4:30", "d:5:53"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestDisabledRulesAreNotChecked(t *testing.T) {
	r := parseOne(t, `{"Name":"a","Meta":{"Disable":true},"Matches":["nonsense {{x}}"],"Condition":"$b"}`)
	if !r.Disabled || r.Matches[0] != "nonsense {{x}}" {
		t.Errorf("got %+v", r)
	}
}

func TestWarnings(t *testing.T) {
	r := parseOne(t, `{"Name":"a","Matches":["$a: F = 'x'","$b: F = 'y'","$c: F = 'y'"],"Condition":"$a $b"}`)
	want := []string{
		"no operator between $a and $b in the condition: $a is without effect",
		"match $c is not used in the condition",
	}
	if !slices.Equal(r.Warnings, want) {
		t.Errorf("got %q, want %q", r.Warnings, want)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`{}`, `["x"]`, `{"Name":"a"}{"Name":"b"}`,
		`{"Name":"a","Meta":{"EventIDs":[1],"Channels":["c"]},"Matches":["$a: F ~= '(?i:x)'"],"Condition":"!($a)"}`,
		`{"Name":"a","Meta":{"Events":{"c":[1]},"Schema":"2.0.0"},"Matches":["$a: extract('(?P<x>\\w+)', F) in c"],"Condition":"$a"}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := Parse(data, nil)
		if err != nil {
			return
		}
		for _, r := range list {
			again, err := Parse([]byte(r.Text()), nil)
			if err != nil {
				t.Fatalf("the text of an accepted rule is refused: %v\n%s", err, r.Text())
			}
			if again[0].Text() != r.Text() {
				t.Fatalf("text changes from\n%s\nto\n%s", r.Text(), again[0].Text())
			}
			if r.Disabled {
				continue
			}
			if _, err := r.Compile(); err != nil {
				t.Fatalf("gene refuses an accepted rule: %v\n%s", err, r.Text())
			}
		}
	})
}
