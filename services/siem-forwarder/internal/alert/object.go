package alert

import (
	"encoding/json"
	"net/netip"
	"strconv"
	"strings"
)

// object is a decoded JSON object, numbers as json.Number.
type object map[string]any

// at returns the value at a path, nil where there is none.
func (o object) at(path ...string) any {
	var v any = map[string]any(o)
	for _, name := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[name]
	}
	return v
}

// object returns the object at a path, nil where there is none.
func (o object) object(path ...string) object {
	m, _ := o.at(path...).(map[string]any)
	return m
}

// text returns the string, number or boolean at a path as text. Windows writes
// - for nothing.
func (o object) text(path ...string) string {
	switch v := o.at(path...).(type) {
	case string:
		if v == "-" {
			return ""
		}
		return v
	case json.Number:
		return v.String()
	case bool:
		return strconv.FormatBool(v)
	}
	return ""
}

// first returns the first text among members that is not empty.
func (o object) first(names ...string) string {
	for _, n := range names {
		if s := o.text(n); s != "" {
			return s
		}
	}
	return ""
}

// number returns the whole number at a path, decimal or with 0x, else 0.
func (o object) number(path ...string) int64 {
	n, err := strconv.ParseInt(strings.TrimSpace(o.text(path...)), 0, 64)
	if err != nil {
		return 0
	}
	return n
}

// ip returns the address at a path, empty unless it is one.
func (o object) ip(path ...string) string {
	a, err := netip.ParseAddr(o.text(path...))
	if err != nil {
		return ""
	}
	return a.WithZone("").Unmap().String()
}

// port returns the port at a path, 0 unless it is one.
func (o object) port(path ...string) int64 {
	if n := o.number(path...); n > 0 && n < 1<<16 {
		return n
	}
	return 0
}
