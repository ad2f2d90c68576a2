package rules

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
)

func TestTextAs(t *testing.T) {
	v1 := func(meta string) string { return `{"Name":"R","Meta":{` + meta + `}}` }
	v2 := func(events string) string {
		return `{"Name":"R","Meta":{"Events":` + events + `,"Schema":"2.0.0"}}`
	}
	tests := []struct {
		name, in string
		to       Form
		want     string
		exact    bool
	}{
		{"v1 one channel", v1(`"EventIDs":[3,1],"Channels":["c"],"Traces":["t"]`), FormV2, `"Events":{"c":[3,1]}`, true},
		{"v1 channels", v1(`"EventIDs":[1],"Channels":["c","b"]`), FormV2, `"Events":{"b":[1],"c":[1]}`, true},
		{"v1 whole channel", v1(`"Channels":["c"]`), FormV2, `"Events":{"c":[]}`, true},
		{"v1 everything", v1(``), FormV2, `"Events":{}`, true},
		{"v1 ids of any channel", v1(`"EventIDs":[1]`), FormV2, `"Events":{}`, false},
		{"v2 one channel", v2(`{"c":[3,1]}`), FormV1, `"EventIDs":[3,1],"Channels":["c"]`, true},
		{"v2 equal ids", v2(`{"c":[2,1],"b":[1,2,2]}`), FormV1, `"EventIDs":[1,2],"Channels":["b","c"]`, true},
		{"v2 different ids", v2(`{"c":[2],"b":[1]}`), FormV1, `"EventIDs":[1,2],"Channels":["b","c"]`, false},
		{"v2 one whole channel of two", v2(`{"c":[],"b":[1]}`), FormV1, `"EventIDs":[],"Channels":["b","c"]`, false},
		{"v2 whole channels", v2(`{"c":[],"b":null}`), FormV1, `"EventIDs":[],"Channels":["b","c"]`, true},
		{"v2 everything", v2(`{}`), FormV1, `"EventIDs":[],"Channels":[]`, true},
		{"v2 no events", `{"Name":"R","Meta":{"Schema":"2.0.0"}}`, FormV1, `"EventIDs":[],"Channels":[]`, true},
		{"same form", v1(`"EventIDs":[1]`), FormV1, `"EventIDs":[1]`, true},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			r := parseOne(t, tc.in)
			before := r.Text()
			text, exact := r.TextAs(tc.to)
			if !strings.Contains(text, `"Meta":{`+tc.want) || exact != tc.exact {
				t.Errorf("got %s, exact %t", text, exact)
			}
			if r.Text() != before {
				t.Errorf("the rule changed to %s", r.Text())
			}
			back := parseOne(t, text)
			if back.Form != tc.to {
				t.Errorf("the text is of form %s", back.Form)
			}
			if exact && outline(back.Selection()) != outline(r.Selection()) {
				t.Errorf("selection %s became %s", outline(r.Selection()), outline(back.Selection()))
			}
		})
	}
}

func outline(s Selection) string {
	var b strings.Builder
	for _, ch := range slices.Sorted(maps.Keys(s.Channels)) {
		ids := slices.Sorted(slices.Values(s.Channels[ch]))
		fmt.Fprintf(&b, "%s=%v ", ch, slices.Compact(ids))
	}
	return fmt.Sprintf("%s any=%v", b.String(), slices.Compact(slices.Sorted(slices.Values(s.AnyChannel))))
}

func TestCompile(t *testing.T) {
	r := parseOne(t, `{"Name":"R","Meta":{"EventIDs":[1],"Channels":["c"],"Criticality":99},"Matches":["$a: extract('(?P<x>\\w+)', F) in some.list-1","$b: extract('(?P<x>\\w+)', G) in some.list-1"],"Condition":"$a or $b"}`)
	c, err := r.Compile()
	if err != nil {
		t.Fatal(err)
	}
	if c.Disabled || c.AtomMap.Len() != 2 || c.Criticality != 10 {
		t.Errorf("got disabled %t, %d matches, criticality %d", c.Disabled, c.AtomMap.Len(), c.Criticality)
	}
}

// TestConcurrentUse matters under the race detector: gene parses with state in
// package variables.
func TestConcurrentUse(t *testing.T) {
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for k := range 20 {
				text := fmt.Sprintf(`{"Name":"R","Matches":["$a: extract('(?P<g%d>%d)', F%d) in c%d"],"Condition":"$a"}`, i, k, i, i)
				list, err := Parse([]byte(text), nil)
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := list[0].Compile(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// A rule given in the other form selects the same events where it says so,
// and otherwise no fewer.
func FuzzTextAs(f *testing.F) {
	for _, s := range []string{
		`{"Name":"a","Meta":{"EventIDs":[1,2],"Channels":["c","d"]},"Matches":[],"Condition":""}`,
		`{"Name":"a","Meta":{"EventIDs":[1]}}`, `{"Name":"a","Meta":{"Channels":["c","c"]}}`, `{"Name":"a"}`,
		`{"Name":"a","Meta":{"Events":{"c":[2,1,1],"d":[1,2]},"Schema":"2.0.0"}}`,
		`{"Name":"a","Meta":{"Events":{"c":[1],"d":[]},"Schema":"2.0.0"}}`, `{"Name":"a","Meta":{"Events":{},"Schema":"2.0.0"}}`,
	} {
		f.Add([]byte(s))
	}
	selects := func(r *Rule, channel string, id int64) bool {
		s := r.Selection()
		if len(s.Channels) == 0 {
			return len(s.AnyChannel) == 0 || slices.Contains(s.AnyChannel, id)
		}
		ids, ok := s.Channels[channel]
		return ok && (len(ids) == 0 || slices.Contains(ids, id))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := Parse(data, nil)
		if err != nil {
			return
		}
		for _, r := range list {
			other := FormV2
			if r.Form == FormV2 {
				other = FormV1
			}
			text, exact := r.TextAs(other)
			parsed, err := Parse([]byte(text), nil)
			if err != nil || len(parsed) != 1 || parsed[0].Form != other || parsed[0].Name != r.Name {
				t.Fatalf("%s became %s: %v", r.Text(), text, err)
			}
			channels := []string{"none of them"}
			ids := []int64{-1, 0}
			for _, s := range []Selection{r.Selection(), parsed[0].Selection()} {
				ids = append(ids, s.AnyChannel...)
				for channel, list := range s.Channels {
					channels, ids = append(channels, channel), append(ids, list...)
				}
			}
			for _, channel := range channels {
				for _, id := range ids {
					before, after := selects(r, channel, id), selects(parsed[0], channel, id)
					if before && !after || exact && before != after {
						t.Fatalf("%s became %s (exact %v): channel %q, id %d: %v became %v", r.Text(), text, exact, channel, id, before, after)
					}
				}
			}
		}
	})
}
