//go:build recorded

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"
)

// object is a JSON object with its members in order.
type object []member

type member struct {
	name  string
	value any
}

func (o object) get(name string) (any, bool) {
	i := slices.IndexFunc(o, func(m member) bool { return m.name == name })
	if i < 0 {
		return nil, false
	}
	return o[i].value, true
}

// decode reads exactly one JSON document.
func decode(text string) (any, error) {
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	v, err := decodeValue(dec)
	if err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one document")
	}
	return v, nil
}

func decodeValue(dec *json.Decoder) (any, error) {
	token, err := dec.Token()
	if err != nil {
		return nil, err
	}
	switch token {
	case json.Delim('{'):
		o := object{}
		for dec.More() {
			name, err := dec.Token()
			if err != nil {
				return nil, err
			}
			v, err := decodeValue(dec)
			if err != nil {
				return nil, err
			}
			o = append(o, member{name.(string), v})
		}
		_, err = dec.Token()
		return o, err
	case json.Delim('['):
		list := []any{}
		for dec.More() {
			v, err := decodeValue(dec)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err = dec.Token()
		return list, err
	}
	return token, nil
}

// elements returns the complete elements of an answer's list, or of a body of
// one document per line, of which only the beginning may be there.
func elements(text string) (list []any) {
	if rest, ok := strings.CutPrefix(text, `{"data":[`); ok {
		text = "[" + rest
	} else {
		text = "[" + strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", ",")
	}
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	if _, err := dec.Token(); err != nil {
		return nil
	}
	for dec.More() {
		v, err := decodeValue(dec)
		if err != nil {
			return list
		}
		list = append(list, v)
	}
	return list
}

var (
	uuidText = regexp.MustCompile(`[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}`)
	keyText  = regexp.MustCompile(`\b[0-9A-Za-z]{64}\b`)
	timeText = regexp.MustCompile(`\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z`)
)

// sets are members whose order has no meaning; moments are those that hold a
// time of the exchange itself.
var (
	sets    = []string{"signatures", "techniques", "tactics"}
	moments = []string{"last-connection", "sent-time", "update"}
)

// names maps what WHIDS had generated to what stands for it in the replay.
type names map[string]string

func (n names) learn(recorded, actual string) error {
	if have, ok := n[recorded]; ok {
		if have != actual {
			return fmt.Errorf("%s stands for %s, not for %s", recorded, have, actual)
		}
		return nil
	}
	for r, a := range n {
		if a == actual {
			return fmt.Errorf("%s stands for %s, not for %s", actual, r, recorded)
		}
	}
	n[recorded] = actual
	return nil
}

// translate puts what is known into a recorded text.
func (n names) translate(text string) string {
	put := func(s string) string {
		if a, ok := n[s]; ok {
			return a
		}
		return s
	}
	return keyText.ReplaceAllStringFunc(uuidText.ReplaceAllStringFunc(text, put), put)
}

// comparison compares a recorded document with an answer.
type comparison struct {
	names names
	// moreRules is how many rules there are beyond those of the recording.
	moreRules int
	// unordered is whether the order of an object's members has no meaning.
	unordered bool
	found     []string
}

func (c *comparison) differ(path, format string, args ...any) {
	c.found = append(c.found, path+": "+fmt.Sprintf(format, args...))
}

func show(v any) string {
	s := fmt.Sprintf("%v", v)
	return s[:min(len(s), 200)]
}

func (c *comparison) value(path, name string, want, got any) {
	switch w := want.(type) {
	case object:
		g, ok := got.(object)
		if !ok {
			c.differ(path, "an object is recorded, got %s", show(got))
			return
		}
		c.object(path, w, g)
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) != len(w) {
			c.differ(path, "recorded %s, got %s", show(want), show(got))
			return
		}
		if slices.Contains(sets, name) {
			w, g = sorted(w), sorted(g)
		}
		for i := range w {
			c.value(fmt.Sprintf("%s[%d]", path, i), "", w[i], g[i])
		}
	case json.Number:
		n, err := w.Int64()
		if err == nil && name == "rule-count" && n > 0 {
			want = json.Number(fmt.Sprint(n + int64(c.moreRules)))
		}
		if want != got {
			c.differ(path, "recorded %s, got %s", want, show(got))
		}
	case string:
		g, ok := got.(string)
		if !ok {
			c.differ(path, "recorded %s, got %s", show(want), show(got))
			return
		}
		c.text(path, name, w, g)
	default:
		if want != got {
			c.differ(path, "recorded %s, got %s", show(want), show(got))
		}
	}
}

func (c *comparison) object(path string, want, got object) {
	for i, w := range want {
		g, ok := got.get(w.name)
		switch {
		case !ok:
			c.differ(path, "member %q is missing", w.name)
			continue
		case !c.unordered && i < len(got) && len(got) == len(want) && got[i].name != w.name:
			c.differ(path, "member %q stands where %q is recorded", got[i].name, w.name)
		}
		c.value(path+"/"+w.name, w.name, w.value, g)
	}
	for _, g := range got {
		if _, ok := want.get(g.name); !ok {
			c.differ(path, "member %q is not recorded", g.name)
		}
	}
}

func (c *comparison) text(path, name, want, got string) {
	if want == got {
		return
	}
	wt, werr := time.Parse(time.RFC3339Nano, want)
	gt, gerr := time.Parse(time.RFC3339Nano, got)
	switch {
	case werr == nil && gerr == nil && slices.Contains(moments, name):
		if wt.IsZero() != gt.IsZero() || !gt.IsZero() && time.Since(gt).Abs() > time.Hour {
			c.differ(path, "recorded %s, got %s", want, got)
		}
		return
	case generated(want) && generated(got) && len(want) == len(got):
		if err := c.names.learn(want, got); err != nil {
			c.differ(path, "%v", err)
		}
		return
	}
	c.differ(path, "recorded %q, got %q", want, got)
}

func generated(s string) bool {
	return s != "" && (uuidText.FindString(s) == s || keyText.FindString(s) == s)
}

func sorted(list []any) []any {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b any) int { return bytes.Compare(fmt.Append(nil, a), fmt.Append(nil, b)) })
	return list
}

// contains demands that the recorded elements come in an answer in this
// order; others may stand between them.
func (c *comparison) contains(want, got []any) {
	if len(want) == 0 {
		c.differ("", "no complete element is recorded")
	}
	for _, w := range want {
		i := slices.IndexFunc(got, func(g any) bool {
			one := comparison{names: c.names, unordered: c.unordered}
			one.value("", "", w, g)
			return len(one.found) == 0
		})
		if i < 0 {
			c.differ("", "missing, or not in this place: %s", show(w))
			return
		}
		got = got[i+1:]
	}
}
