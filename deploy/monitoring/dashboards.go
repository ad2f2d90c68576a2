package monitoring

import (
	"fmt"
	"strings"
)

// Dashboards returns the overview and one dashboard for each service.
func Dashboards() []Dashboard {
	return []Dashboard{overview(), gateway(), ruleEngine(), registry(), dispatch(), ingest(), scorer(), forwarder(), canary()}
}

// graph is a panel with one query.
func graph(title, unit, description, expr, legend string) Panel {
	return Panel{Title: title, Unit: unit, Description: description, Queries: []Query{{expr, legend}}}
}

// stat is a panel with the value of now.
func stat(title, unit, description, expr, legend string) Panel {
	p := graph(title, unit, description, expr, legend)
	p.Kind = "stat"
	return p
}

func overview() Dashboard {
	return Dashboard{UID: "nightjar-overview", Title: "Nightjar / Overview", Description: "Whether Nightjar works, what goes through it and what it has room for.", Rows: []Row{
		{"State", []Panel{
			stat("Ready", "bool_yes_no", "What /readyz says, the worst of all instances.", `min by (check) (nightjar_ready{instance=~"$instance"})`, "{{check}}"),
			stat("Firing alerts", "short", "Alerts of Nightjar's rules that fire.", `sum by (severity) (ALERTS{alertname=~"Nightjar.*", alertstate="firing"})`, "{{severity}}"),
			stat("Endpoints", "short", "Endpoints that exist, were heard of within a day, and were never heard of.", `max(nightjar_endpoint_registry_endpoints{instance=~"$instance"})`, "all").
				and(`max(nightjar:active_endpoints:max)`, "within a day").and(`max(nightjar_endpoint_registry_unseen_endpoints{instance=~"$instance"})`, "never"),
		}},
		{"From event to alert", []Panel{
			graph("Events", "eps", "Events acknowledged, examined by the rules, and stored for queries.", `sum(rate(nightjar_api_gateway_events_received_total{instance=~"$instance"}[$__rate_interval]))`, "received").
				and(`sum(rate(nightjar_rule_engine_events_total{instance=~"$instance"}[$__rate_interval]))`, "examined").
				and(`sum(rate(nightjar_log_ingest_events_stored_total{instance=~"$instance"}[$__rate_interval]))`, "stored"),
			graph("Alerts", "cps", "Alerts raised, by severity.", `sum by (severity) (rate(nightjar_rule_engine_alerts_total{instance=~"$instance"}[$__rate_interval]))`, "{{severity}}"),
			graph("Refused and set aside", "cps", "Requests with events that were refused, and dead letters, by reason.", `sum by (reason) (rate(nightjar_api_gateway_ingest_refused_total{instance=~"$instance"}[$__rate_interval]))`, "refused: {{reason}}").
				and(`sum by (reason) (rate(nightjar_dead_letters_total{instance=~"$instance"}[$__rate_interval]))`, "dead letter: {{reason}}"),
			graph("Behind", "s", "How far each view is behind its stream.", `max by (service, view) (nightjar:view_lag_seconds:max{instance=~"$instance"})`, "{{service}} {{view}}"),
			graph("Waiting for detection", "short", "Batches of events that no rule-engine has taken up.", `max(nightjar_rule_engine_consumer_pending{instance=~"$instance"})`, "batches"),
			graph("Waiting for SIEMs", "short", "Alerts that each SIEM has not fetched yet.", `max by (siem) (nightjar_rule_engine_siem_pending_alerts{instance=~"$instance"})`, "{{siem}}"),
		}},
		{"Room", []Panel{
			graph("Streams", "bytes", "Bytes of each stream on one server.", `max by (stream) (nightjar:stream_bytes:max)`, "{{stream}}"),
			graph("Streams, of their limit", "percentunit", "How full each stream is that has a limit.", `max by (stream) (nightjar:stream_fill:ratio)`, "{{stream}}"),
			graph("Stores", "bytes", "Bytes of each service's own store.", `max by (service) (nightjar:store_bytes:max{instance=~"$instance"})`, "{{service}}"),
			graph("Standalone", "bytes", "What all stores of a standalone occupy, what they may, and what is free beyond --min-free.", `max(nightjar_standalone_store_bytes{instance=~"$instance"})`, "stores").
				and(`min(nightjar_standalone_store_limit_bytes{instance=~"$instance"})`, "limit").and(`min(nightjar_standalone_disk_spare_bytes{instance=~"$instance"})`, "spare on disk"),
			graph("Certificates", "s", "Time until the certificates end that are shown.", `min by (shown_by) (nightjar:certificate_left_seconds:min{instance=~"$instance"})`, "{{shown_by}}"),
			graph("Quiet endpoints", "short", "Endpoints that were heard of before and not within the time.", `max by (after) (nightjar_endpoint_registry_quiet_endpoints{instance=~"$instance"})`, "{{after}}"),
		}},
		process(""),
	}}
}

// and adds a query to a panel.
func (p Panel) and(expr, legend string) Panel {
	p.Queries = append(p.Queries, Query{expr, legend})
	return p
}

// process is the row of what each process uses; job selects those of a service,
// or all where it is empty.
func process(job string) Row {
	selector := `instance=~"$instance"`
	if job != "" {
		selector += fmt.Sprintf(`, job=~"%s|standalone"`, job)
	}
	return Row{"Processes", []Panel{
		graph("CPU", "short", "CPUs in use by each process.", `rate(process_cpu_seconds_total{`+selector+`}[$__rate_interval])`, "{{job}} {{instance}}"),
		graph("Memory", "bytes", "Resident memory of each process.", `process_resident_memory_bytes{`+selector+`}`, "{{job}} {{instance}}"),
		graph("Goroutines", "short", "Goroutines of each process. A number that only rises is an error.", `go_goroutines{`+selector+`}`, "{{job}} {{instance}}"),
	}}
}

// service is a dashboard that begins with what the service does itself.
func service(name, description string, own ...Row) Dashboard {
	return Dashboard{UID: "nightjar-" + name, Title: "Nightjar / " + name, Description: description, Rows: append(own, process(name))}
}

// requests is the row of requests that a service answers over NATS, whose
// metric nightjar_<service>_requests_total has the labels subject and code.
func requests(name string) Row {
	m := "nightjar_" + strings.ReplaceAll(name, "-", "_")
	errors := graph("Errors", "cps", "Failures on the manager's side, that of the requests included.", `sum by (service) (nightjar:errors:rate5m{service="`+strings.ReplaceAll(name, "-", "_")+`", instance=~"$instance"})`, "{{service}}")
	return Row{"Requests of the gateways", []Panel{
		graph("Requests", "reqps", "Requests answered, by subject and code: ok or the kind of error.", `sum by (subject, code) (rate(`+m+`_requests_total{instance=~"$instance"}[$__rate_interval]))`, "{{subject}} {{code}}"),
		graph("Duration, 99 %", "s", "Time within which 99 of 100 requests are answered.", `histogram_quantile(0.99, sum by (le, subject) (rate(`+m+`_request_duration_seconds_bucket{instance=~"$instance"}[$__rate_interval])))`, "{{subject}}"),
		errors,
	}}
}

// stores is the row of what a service has stored and folded.
func stores(name string) Row {
	m := "nightjar_" + strings.ReplaceAll(name, "-", "_")
	return Row{"Views and streams", []Panel{
		graph("Behind", "s", "How far each view is behind its stream.", m+`_view_lag_seconds{instance=~"$instance"}`, "{{view}} {{instance}}"),
		graph("Folded", "cps", "Messages that each view folds.", `sum by (view, instance) (rate(`+m+`_view_folded_messages_total{instance=~"$instance"}[$__rate_interval]))`, "{{view}} {{instance}}"),
		graph("Gaps and missing messages", "short", "1 where a view stands still at a gap, and messages that were deleted from within its stream.", `max by (view, instance) (`+m+`_view_gap{instance=~"$instance"})`, "gap: {{view}} {{instance}}").
			and(`max by (view, instance) (`+m+`_view_missing_messages_total{instance=~"$instance"})`, "missing: {{view}} {{instance}}"),
		graph("Streams", "bytes", "Bytes of the streams, buckets and object stores that the service owns.", `max by (stream) (`+m+`_stream_bytes{instance=~"$instance"})`, "{{stream}}"),
		graph("Messages", "short", "Messages of the streams, buckets and object stores that the service owns.", `max by (stream) (`+m+`_stream_messages{instance=~"$instance"})`, "{{stream}}"),
		graph("Store", "bytes", "The service's own store on disk.", m+`_store_bytes{instance=~"$instance"}`, "{{instance}}"),
	}}
}
