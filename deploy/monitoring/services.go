package monitoring

func gateway() Dashboard {
	const m = "nightjar_api_gateway_"
	return service("api-gateway", "The doors: the admin API and the agent API.",
		Row{"Requests", []Panel{
			graph("Requests", "reqps", "Requests answered, by API and status.", `sum by (api, code) (rate(`+m+`requests_total{instance=~"$instance"}[$__rate_interval]))`, "{{api}} {{code}}"),
			graph("Duration, 99 %", "s", "Time within which 99 of 100 requests are answered, by route.", `histogram_quantile(0.99, sum by (le, api, route) (rate(`+m+`request_duration_seconds_bucket{instance=~"$instance"}[$__rate_interval])))`, "{{api}} {{route}}"),
			graph("In flight", "short", "Requests being worked on; beyond 4096 of agents and 256 of operators more are answered 503.", `sum by (api) (`+m+`requests_in_flight{instance=~"$instance"})`, "{{api}}"),
			graph("Failures", "cps", "Requests that failed because of an error of the gateway, and audit records that could not be stored.", `sum(rate(`+m+`errors_total{instance=~"$instance"}[$__rate_interval]))`, "errors").
				and(`sum(rate(`+m+`audit_failures_total{instance=~"$instance"}[$__rate_interval]))`, "audit"),
			graph("Endpoints", "short", "Endpoints that may talk to the manager, as each gateway knows them.", m+`endpoints{instance=~"$instance"}`, "{{instance}}"),
			graph("Containers read", "cps", "Containers read to compute their hash.", `sum(rate(`+m+`containers_read_total{instance=~"$instance"}[$__rate_interval]))`, "containers"),
		}},
		Row{"Ingest", []Panel{
			graph("Events", "eps", "Events acknowledged: they are stored in the stream EVENTS, or in INTAKE on their way there.", `sum by (instance) (rate(`+m+`events_received_total{instance=~"$instance"}[$__rate_interval]))`, "{{instance}}"),
			graph("Bytes", "Bps", "Bytes of the bodies, as they were sent.", `sum by (instance) (rate(`+m+`bytes_received_total{instance=~"$instance"}[$__rate_interval]))`, "{{instance}}"),
			graph("Batches", "cps", "Batches acknowledged: they are stored in the stream EVENTS, or in INTAKE on their way there.", `sum by (instance) (rate(`+m+`batches_published_total{instance=~"$instance"}[$__rate_interval]))`, "{{instance}}"),
			graph("Refused", "reqps", "Requests with events that were not answered 200, by reason.", `sum by (reason) (rate(`+m+`ingest_refused_total{instance=~"$instance"}[$__rate_interval]))`, "{{reason}}"),
			graph("Dead letters", "cps", "Lines that are no events, by reason.", `sum by (reason) (rate(nightjar_dead_letters_total{instance=~"$instance", service="api-gateway"}[$__rate_interval]))`, "{{reason}}"),
			graph("Certificate", "s", "Time until the certificate of the APIs ends.", `min(nightjar:certificate_left_seconds:min{shown_by="APIs", instance=~"$instance"})`, "left"),
		}},
		Row{"Intake", []Panel{
			graph("By way of INTAKE", "percentunit", "Part of the batches that were stored in the stream INTAKE first, together with others.", `sum by (instance) (rate(`+m+`intake_batches_total{instance=~"$instance"}[$__rate_interval])) / sum by (instance) (rate(`+m+`batches_published_total{instance=~"$instance"}[$__rate_interval]))`, "{{instance}}"),
			graph("Waiting", "bytes", "Bytes that are acknowledged and not moved to EVENTS yet. What one second brings is usual; from 32 MiB on nothing more is stored together.", m+`intake_pending_bytes{instance=~"$instance"}`, "{{instance}}"),
			graph("Trouble", "cps", "Moves to EVENTS that failed and are tried again, and messages found that cannot be read.", `sum by (instance) (rate(`+m+`intake_failures_total{instance=~"$instance"}[$__rate_interval]))`, "not moved: {{instance}}").
				and(`sum by (instance) (rate(`+m+`intake_unreadable_messages_total{instance=~"$instance"}[$__rate_interval]))`, "unreadable: {{instance}}"),
		}},
		stores("api-gateway"))
}

func ruleEngine() Dashboard {
	const m = "nightjar_rule_engine_"
	return service("rule-engine", "What is bad: rules, detection, alerts, and how far SIEMs are.",
		Row{"Detection", []Panel{
			graph("Events", "eps", "Events in the batches acknowledged, and those of them that a filter rule matched or whose alert was raised before.", `sum(rate(`+m+`events_total{instance=~"$instance"}[$__rate_interval]))`, "all").
				and(`sum(rate(`+m+`filtered_events_total{instance=~"$instance"}[$__rate_interval]))`, "filtered").and(`sum(rate(`+m+`repeated_total{instance=~"$instance"}[$__rate_interval]))`, "repeated"),
			graph("Alerts", "cps", "Alerts raised, by severity and by who found them.", `sum by (severity, origin) (rate(`+m+`alerts_total{instance=~"$instance"}[$__rate_interval]))`, "{{severity}} {{origin}}"),
			graph("Waiting", "short", "Batches that no replica has taken up, and those taken up and not acknowledged.", `max(`+m+`consumer_pending{instance=~"$instance"})`, "waiting").and(`max(`+m+`consumer_unacknowledged{instance=~"$instance"})`, "in hand"),
			graph("Batch, 99 %", "s", "Time within which 99 of 100 batches are acknowledged.", `histogram_quantile(0.99, sum by (le) (rate(`+m+`batch_duration_seconds_bucket{instance=~"$instance"}[$__rate_interval])))`, "99 %"),
			graph("Batches", "cps", "Batches acknowledged, and handed back to be tried again.", `sum(rate(`+m+`batches_total{instance=~"$instance"}[$__rate_interval]))`, "acknowledged").and(`sum(rate(`+m+`retries_total{instance=~"$instance"}[$__rate_interval]))`, "tried again"),
			graph("Trouble", "cps", "Failures that are tried again, by kind, alerts that the stream refused, and dead letters.", `sum by (kind) (rate(`+m+`errors_total{instance=~"$instance"}[$__rate_interval]))`, "{{kind}}").
				and(`sum(rate(`+m+`refused_alerts_total{instance=~"$instance"}[$__rate_interval]))`, "refused").
				and(`sum by (reason) (rate(nightjar_dead_letters_total{instance=~"$instance", service="rule-engine"}[$__rate_interval]))`, "dead letter: {{reason}}"),
		}},
		Row{"Rules", []Panel{
			graph("Rules", "short", "Compiled rules, those that wait for a container, and those set aside after a panic.", `max(`+m+`rules{instance=~"$instance"})`, "compiled").
				and(`max(`+m+`rules_waiting{instance=~"$instance"})`, "waiting").and(`max(`+m+`rules_failed{instance=~"$instance"})`, "set aside"),
			graph("Revision", "short", "Revision of the rule set in force on each replica. They are the same but for a moment.", m+`set_revision{instance=~"$instance"}`, "{{instance}}"),
			graph("Containers", "short", "Containers, and their different lines.", `max(`+m+`containers{instance=~"$instance"})`, "containers").and(`max(`+m+`container_lines{instance=~"$instance"})`, "lines"),
		}},
		Row{"SIEMs", []Panel{
			graph("Waiting", "short", "Alerts that each SIEM has not fetched.", `max by (siem) (`+m+`siem_pending_alerts{instance=~"$instance"})`, "{{siem}}"),
			graph("In hand", "short", "Alerts that each SIEM has fetched and not acknowledged; at 1000 it gets no more.", `max by (siem) (`+m+`siem_unacknowledged_alerts{instance=~"$instance"})`, "{{siem}}"),
			graph("Fetched", "cps", "Alerts that each SIEM fetches.", `max by (siem) (rate(`+m+`siem_deliveries_total{instance=~"$instance"}[$__rate_interval]))`, "{{siem}}"),
		}},
		requests("rule-engine"), stores("rule-engine"))
}

func registry() Dashboard {
	const m = "nightjar_endpoint_registry_"
	return service("endpoint-registry", "Who may talk to the manager, and who has been heard of.",
		Row{"Endpoints", []Panel{
			graph("Endpoints", "short", "Endpoints that exist, and those of them that were never heard of.", `max(`+m+`endpoints{instance=~"$instance"})`, "all").and(`max(`+m+`unseen_endpoints{instance=~"$instance"})`, "never heard of"),
			graph("Quiet", "short", "Endpoints that were heard of before and not within the time.", `max by (after) (`+m+`quiet_endpoints{instance=~"$instance"})`, "{{after}}"),
			graph("Records", "cps", "Changes that another replica overtook, and records that cannot be read.", `sum(rate(`+m+`conflicts_total{instance=~"$instance"}[$__rate_interval]))`, "conflicts").and(`sum(rate(`+m+`malformed_records_total{instance=~"$instance"}[$__rate_interval]))`, "unreadable"),
		}},
		requests("endpoint-registry"), stores("endpoint-registry"))
}

func dispatch() Dashboard {
	const m = "nightjar_command_dispatch_"
	return service("command-dispatch", "What is asked of endpoints: commands and their results.",
		Row{"Commands", []Panel{
			graph("Waiting", "short", "Commands that wait for their endpoint, and those handed out without a result yet.", `max(`+m+`queued_commands{instance=~"$instance"})`, "queued").and(`max(`+m+`sent_commands{instance=~"$instance"})`, "handed out"),
			graph("Handed out", "cps", "Commands handed out, and those that ended because no result came.", `sum(rate(`+m+`delivered_commands_total{instance=~"$instance"}[$__rate_interval]))`, "handed out").and(`sum(rate(`+m+`expired_commands_total{instance=~"$instance"}[$__rate_interval]))`, "not answered"),
			graph("Results", "cps", "Results received, by what became of them.", `sum by (outcome) (rate(`+m+`results_total{instance=~"$instance"}[$__rate_interval]))`, "{{outcome}}"),
		}},
		requests("command-dispatch"), stores("command-dispatch"))
}

func ingest() Dashboard {
	const m = "nightjar_log_ingest_"
	return service("log-ingest", "What happened: events, alerts and artifacts, and questions about them.",
		Row{"Stored", []Panel{
			graph("Events", "eps", "Events stored, passed over as repetitions, and without a time of their own.", `sum(rate(`+m+`events_stored_total{instance=~"$instance"}[$__rate_interval]))`, "stored").
				and(`sum(rate(`+m+`events_repeated_total{instance=~"$instance"}[$__rate_interval]))`, "repeated").and(`sum(rate(`+m+`events_untimed_total{instance=~"$instance"}[$__rate_interval]))`, "untimed"),
			graph("Alerts", "cps", "Alerts stored, and passed over as repetitions.", `sum(rate(`+m+`alerts_stored_total{instance=~"$instance"}[$__rate_interval]))`, "stored").and(`sum(rate(`+m+`alerts_repeated_total{instance=~"$instance"}[$__rate_interval]))`, "repeated"),
			graph("Chunks", "cps", "Chunks written, by kind.", `sum by (kind) (rate(`+m+`chunks_total{instance=~"$instance"}[$__rate_interval]))`, "{{kind}}"),
			graph("Merged", "cps", "Chunks merged, and what they became.", `sum by (step) (rate(`+m+`merge_chunks_total{instance=~"$instance"}[$__rate_interval]))`, "{{step}}"),
			graph("Merging", "percentunit", "Part of a core that merging takes.", `sum(rate(`+m+`merge_seconds_total{instance=~"$instance"}[$__rate_interval]))`, "time"),
			graph("Waiting", "short", "Hours of endpoints with chunks that were not merged yet.", `sum by (kind) (`+m+`merge_waiting_hours{instance=~"$instance"})`, "{{kind}}"),
			graph("Passed over", "cps", "Messages that cannot be read.", `sum by (stream) (rate(`+m+`unreadable_total{instance=~"$instance"}[$__rate_interval]))`, "unreadable: {{stream}}"),
			graph("Answered lines", "cps", "Events and alerts given in answers.", `sum(rate(`+m+`answered_lines_total{instance=~"$instance"}[$__rate_interval]))`, "lines"),
			graph("Answered bytes", "Bps", "Bytes of the lines given in answers.", `sum(rate(`+m+`answered_bytes_total{instance=~"$instance"}[$__rate_interval]))`, "bytes"),
			graph("Deleted", "cps", "Entries of the store deleted after their retention.", `sum by (stream) (rate(`+m+`swept_entries_total{instance=~"$instance"}[$__rate_interval]))`, "{{stream}}"),
		}},
		requests("log-ingest"), stores("log-ingest"))
}

func scorer() Dashboard {
	const m = "nightjar_report_scorer_"
	return service("report-scorer", "Whom to look at first: reports and scores.",
		Row{"Reports", []Panel{
			graph("Folded", "cps", "Alerts folded, and messages that cannot be read.", `sum by (instance) (rate(`+m+`alerts_folded_total{instance=~"$instance"}[$__rate_interval]))`, "{{instance}}").
				and(`sum(rate(`+m+`malformed_messages_total{instance=~"$instance"}[$__rate_interval]))`, "unreadable"),
			graph("Signatures", "short", "Different names of signatures over all endpoints.", `max(`+m+`census_signatures{instance=~"$instance"})`, "signatures"),
			graph("Changes", "cps", "Reports cleared, statistics built again, and names left out of reports.", `sum(rate(`+m+`cleared_reports_total{instance=~"$instance"}[$__rate_interval]))`, "cleared").
				and(`sum(rate(`+m+`rebuilt_statistics_total{instance=~"$instance"}[$__rate_interval]))`, "built again").and(`sum(rate(`+m+`uncounted_signatures_total{instance=~"$instance"}[$__rate_interval]))`, "left out"),
		}},
		requests("report-scorer"), stores("report-scorer"))
}

func forwarder() Dashboard {
	const m = "nightjar_siem_forwarder_"
	return service("siem-forwarder", "Alerts on their way to a SIEM that does not speak NATS.",
		Row{"Alerts", []Panel{
			graph("Forwarded", "cps", "Alerts that the target has taken, by severity.", `sum by (severity) (rate(`+m+`alerts_forwarded_total{instance=~"$instance"}[$__rate_interval]))`, "{{severity}}"),
			graph("Waiting", "short", "Alerts in the stream when it was last looked, and those in hand.", `max by (instance) (`+m+`pending_alerts{instance=~"$instance"})`, "waiting {{instance}}").and(`max by (instance) (`+m+`alerts_in_hand{instance=~"$instance"})`, "in hand {{instance}}"),
			graph("Age", "s", "Age of the alert forwarded last when the target took it.", m+`lag_seconds{instance=~"$instance"}`, "{{instance}}"),
			graph("Not as it was", "cps", "Alerts refused for good, below the lowest severity, and shortened.", `sum(rate(`+m+`rejected_total{instance=~"$instance"}[$__rate_interval]))`, "refused").
				and(`sum(rate(`+m+`filtered_total{instance=~"$instance"}[$__rate_interval]))`, "filtered").and(`sum(rate(`+m+`shortened_total{instance=~"$instance"}[$__rate_interval]))`, "shortened"),
			graph("Failures", "cps", "Attempts that must be repeated.", `sum(rate(`+m+`failures_total{instance=~"$instance"}[$__rate_interval]))`, "attempts"),
			graph("Attempt, 99 %", "s", "Time within which 99 of 100 attempts end.", `histogram_quantile(0.99, sum by (le) (rate(`+m+`send_duration_seconds_bucket{instance=~"$instance"}[$__rate_interval])))`, "99 %"),
		}})
}

func canary() Dashboard {
	const m = "nightjar_canary_"
	return service("canary", "Whether an event and a command come through the whole manager, seen from outside.",
		Row{"Rounds", []Panel{
			graph("Rounds", "cps", "Rounds that have ended, by result.", `sum by (result) (rate(`+m+`rounds_total{instance=~"$instance"}[$__rate_interval]))`, "{{result}}"),
			graph("Since the last success", "s", "Time since an event and a command last came through.", `time() - max by (instance) (`+m+`last_success_timestamp_seconds{instance=~"$instance"})`, "{{instance}}"),
			graph("Failures", "cps", "Steps that have failed: the first to fail is where to look.", `sum by (step, reason) (rate(`+m+`step_failures_total{instance=~"$instance"}[$__rate_interval])) > 0`, "{{step}}: {{reason}}"),
			graph("Step, half of them", "s", "Time within which half of the steps succeed.", `histogram_quantile(0.5, sum by (le, step) (rate(`+m+`step_duration_seconds_bucket{instance=~"$instance"}[$__rate_interval])))`, "{{step}}"),
		}})
}
