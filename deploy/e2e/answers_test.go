//go:build recorded

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

const (
	// ownRule is the rule of the recorded manager that marks the recorded
	// events, and its criticality.
	ownRule            = "HeurSpawnShell"
	ownRuleCriticality = 5
)

// expected returns, as if it were recorded, what should be answered.
func (r *replayer) expected(ask *request, trip roundTrip, want *answers) (*recordedMessage, error) {
	m := &recordedMessage{header: http.Header{}, line: fmt.Sprintf("HTTP/1.1 %d ", max(want.status, http.StatusOK))}
	var err error
	switch {
	case want.events != "":
		m.body, err = r.eventList(want.events)
	case want.like != "":
		i := slices.IndexFunc(r.exchanges, func(x recordedExchange) bool { return x.String() == want.like })
		if i < 0 {
			return nil, fmt.Errorf("%s is not recorded", want.like)
		}
		if m.body = r.exchanges[i].trips[0].answer.body; want.part != "" {
			m.body, err = partOf(m.body, want.part)
		}
	case want.body != "" || trip.answer == nil || len(want.set) == 0:
		m.body = want.body
	default:
		m.body = trip.answer.body
	}
	if err != nil {
		return nil, err
	}
	if len(want.set) > 0 {
		if m.body, err = withSet(m.body, want.set); err != nil {
			return nil, err
		}
	}
	if m.body != "" && !(ask.admin && strings.HasPrefix(m.body, `{"data":`)) {
		m.header.Set("Content-Type", "text/plain; charset=utf-8")
	}
	if want.status >= 400 {
		m.header.Set("X-Content-Type-Options", "nosniff")
	}
	return m, nil
}

// withSet returns a document with members set to other values.
func withSet(text string, set []string) (string, error) {
	doc, err := decode(text)
	if err != nil {
		return "", err
	}
	for i := 0; i+1 < len(set); i += 2 {
		if doc, err = with(doc, strings.Split(set[i], "/"), set[i+1]); err != nil {
			return "", fmt.Errorf("%s: %w", set[i], err)
		}
	}
	return encode(doc), nil
}

// with returns a value in which what stands at a path is replaced.
func with(in any, path []string, value string) (any, error) {
	if len(path) == 0 {
		v, err := decode(value)
		if err == nil && encode(v) == encode(in) {
			err = errors.New("it has this value already")
		}
		return v, err
	}
	switch in := in.(type) {
	case []any:
		i, err := strconv.Atoi(path[0])
		if err != nil || i >= len(in) {
			return nil, fmt.Errorf("no element %s", path[0])
		}
		in = slices.Clone(in)
		in[i], err = with(in[i], path[1:], value)
		return in, err
	case object:
		if name, ok := strings.CutPrefix(path[0], "<"); ok {
			v, err := decode(value)
			return append(object{{name, v}}, in...), err
		}
		in = slices.Clone(in)
		i := slices.IndexFunc(in, func(m member) bool { return m.name == path[0] })
		if i < 0 {
			in, i = append(in, member{path[0], nil}), len(in)
		}
		var err error
		in[i].value, err = with(in[i].value, path[1:], value)
		return in, err
	}
	return nil, fmt.Errorf("nothing at %s", path[0])
}

// partOf returns the answer whose data is a member of another.
func partOf(text, path string) (string, error) {
	v, err := decode(text)
	if err != nil {
		return "", err
	}
	for name := range strings.SplitSeq(path, "/") {
		o, _ := v.(object)
		var ok bool
		if v, ok = o.get(name); !ok {
			return "", fmt.Errorf("no member %s", name)
		}
	}
	return okay(encode(v)).body, nil
}

// encode writes a decoded document.
func encode(v any) string {
	switch v := v.(type) {
	case object:
		parts := make([]string, 0, len(v))
		for _, m := range v {
			parts = append(parts, encode(m.name)+":"+encode(m.value))
		}
		return "{" + strings.Join(parts, ",") + "}"
	case []any:
		parts := make([]string, 0, len(v))
		for _, e := range v {
			parts = append(parts, encode(e))
		}
		return "[" + strings.Join(parts, ",") + "]"
	default:
		text, err := json.Marshal(v)
		if err != nil {
			panic(err) // a decoded value is none that cannot be encoded
		}
		return string(text)
	}
}

// note keeps the events of a posted body.
func (r *replayer) note(body string) {
	for line := range strings.Lines(body) {
		var e struct {
			Event struct{ EventData struct{ N string } }
		}
		if line = strings.TrimSpace(line); json.Unmarshal([]byte(line), &e) != nil || e.Event.EventData.N == "" {
			continue
		}
		// Two events are both the tenth.
		n := e.Event.EventData.N
		for r.events[n] != "" && r.events[n] != line {
			n += "b"
		}
		r.events[n] = line
	}
}

// eventList returns the answer that lists these events, marked by the
// manager's own rule where the events are on a channel that it covers.
func (r *replayer) eventList(numbers string) (string, error) {
	var list []string
	for _, n := range strings.Fields(numbers) {
		line, ok := r.events[n]
		if !ok {
			return "", fmt.Errorf("no event %s was posted", n)
		}
		if r.channel == recordedChannel {
			doc, err := decode(line)
			if err != nil {
				return "", err
			}
			line = encode(marked(doc.(object)))
		}
		list = append(list, line)
	}
	return `{"data":[` + strings.Join(list, ",") + `],"message":"OK","error":""}`, nil
}

// marked returns an event as it is once the manager's own rule has marked it:
// the signatures are united, the agent's first, and the larger criticality
// counts. A Signature of another type is no mark.
func marked(doc object) object {
	event, _ := doc.get("Event")
	info, _ := event.(object).get("GeneInfo")
	o, _ := info.(object)
	var names []any
	criticality := ownRuleCriticality
	if list, ok := o.get("Signature"); ok {
		if names, ok = list.([]any); ok && len(names) > 0 {
			if c, ok := o.get("Criticality"); ok {
				n, _ := strconv.Atoi(fmt.Sprint(c))
				criticality = max(criticality, min(n, 10))
			}
		}
	}
	if !slices.Contains(names, any(ownRule)) {
		names = append(slices.Clone(names), ownRule)
	}
	for path, value := range map[string]any{"Signature": names, "Criticality": json.Number(strconv.Itoa(criticality))} {
		i := slices.IndexFunc(o, func(m member) bool { return m.name == path })
		if o = slices.Clone(o); i < 0 {
			o = append(o, member{path, value})
		} else {
			o[i].value = value
		}
	}
	inner := slices.Clone(event.(object))
	if i := slices.IndexFunc(inner, func(m member) bool { return m.name == "GeneInfo" }); i < 0 {
		inner = append(inner, member{"GeneInfo", o})
	} else {
		inner[i].value = o
	}
	return object{{"Event", inner}}
}
