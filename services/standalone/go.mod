module github.com/nightjar-edr/nightjar/services/standalone

go 1.26.0

require (
	github.com/nightjar-edr/nightjar/pkg v0.0.0
	github.com/nightjar-edr/nightjar/services/api-gateway v0.0.0
	github.com/nightjar-edr/nightjar/services/command-dispatch v0.0.0
	github.com/nightjar-edr/nightjar/services/endpoint-registry v0.0.0
	github.com/nightjar-edr/nightjar/services/log-ingest v0.0.0
	github.com/nightjar-edr/nightjar/services/report-scorer v0.0.0
	github.com/nightjar-edr/nightjar/services/rule-engine v0.0.0
)

replace github.com/nightjar-edr/nightjar/pkg => ../../pkg

replace github.com/nightjar-edr/nightjar/services/api-gateway => ../api-gateway

replace github.com/nightjar-edr/nightjar/services/rule-engine => ../rule-engine

replace github.com/nightjar-edr/nightjar/services/endpoint-registry => ../endpoint-registry

replace github.com/nightjar-edr/nightjar/services/command-dispatch => ../command-dispatch

replace github.com/nightjar-edr/nightjar/services/log-ingest => ../log-ingest

replace github.com/nightjar-edr/nightjar/services/report-scorer => ../report-scorer
