package monitoring

import (
	"encoding/json"
	"fmt"
)

// Dashboard is one of Grafana's dashboards, as far as it is used here.
type Dashboard struct {
	// UID is unique and part of the dashboard's address; it never changes.
	UID, Title, Description string
	Rows                    []Row
}

// Row is a titled line of panels.
type Row struct {
	Title  string
	Panels []Panel
}

// Panel shows the results of queries.
type Panel struct {
	Title, Description string
	// Kind is a type of panel of Grafana; empty means a graph over time.
	Kind string
	// Unit is one of Grafana's units, such as s, bytes or reqps.
	Unit    string
	Queries []Query
}

// Query is a query in PromQL. In Legend, {{name}} stands for the value of a
// label. $instance in Expr stands for the instances that are chosen.
type Query struct{ Expr, Legend string }

// Sizes of panels in the units of Grafana's grid, which is 24 wide.
const (
	panelWidth, panelHeight = 8, 8
	gridWidth               = 24
)

// schemaVersion is that of the JSON model of Grafana 12.
const schemaVersion = 41

type object = map[string]any

var datasource = object{"type": "prometheus", "uid": "${datasource}"}

// JSON returns the dashboard in the form that Grafana reads, as described in
// its documentation, "JSON model".
func (d *Dashboard) JSON() ([]byte, error) {
	var panels []object
	id, y := 0, 0
	place := func(p object, x, w, h int) {
		id++
		p["id"], p["gridPos"] = id, object{"x": x, "y": y, "w": w, "h": h}
		panels = append(panels, p)
	}
	for _, row := range d.Rows {
		place(object{"type": "row", "title": row.Title, "collapsed": false, "panels": []object{}}, 0, gridWidth, 1)
		y++
		for i := range row.Panels {
			x := i * panelWidth % gridWidth
			if i > 0 && x == 0 {
				y += panelHeight
			}
			place(row.Panels[i].object(), x, panelWidth, panelHeight)
		}
		y += panelHeight
	}
	out, err := json.MarshalIndent(object{
		"uid": d.UID, "title": d.Title, "description": d.Description, "tags": []string{"nightjar"}, "schemaVersion": schemaVersion, "version": 1,
		"editable": true, "graphTooltip": 1, "refresh": "30s", "timezone": "", "time": object{"from": "now-6h", "to": "now"},
		"annotations": object{"list": []object{}}, "links": []object{{"type": "dashboards", "title": "Nightjar", "tags": []string{"nightjar"}, "asDropdown": true, "includeVars": true, "keepTime": true}},
		"templating": object{"list": []object{
			{"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
			{"name": "instance", "label": "Instance", "type": "query", "datasource": datasource, "query": object{"query": "label_values(nightjar_build_info, instance)", "refId": "instance"},
				"refresh": 2, "multi": true, "includeAll": true, "allValue": ".*", "current": object{"text": "All", "value": "$__all"}},
		}},
		"panels": panels,
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("dashboard %s: %w", d.UID, err)
	}
	return append(out, '\n'), nil
}

func (p *Panel) object() object {
	kind := p.Kind
	if kind == "" {
		kind = "timeseries"
	}
	var targets []object
	for i, q := range p.Queries {
		t := object{"refId": string(rune('A' + i)), "datasource": datasource, "expr": q.Expr, "legendFormat": q.Legend}
		if kind == "stat" {
			t["instant"] = true
		}
		targets = append(targets, t)
	}
	defaults := object{"unit": p.Unit, "min": 0}
	if kind == "timeseries" {
		defaults["custom"] = object{"fillOpacity": 10, "showPoints": "never"}
	}
	return object{"type": kind, "title": p.Title, "description": p.Description, "datasource": datasource, "targets": targets, "fieldConfig": object{"defaults": defaults, "overrides": []object{}}}
}
