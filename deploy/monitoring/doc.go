// Package monitoring holds what operators watch Nightjar with - the rules of
// Prometheus, their tests, and Grafana's dashboards - to what the programs
// really export.
//
// Its tests run the rule tests, which are in the format of promtool, with
// Prometheus' own engine; start a manager and demand that every metric and
// label that a rule or dashboard asks for is there, and that every metric is
// listed in docs/operations/metrics.md; and hold what is generated to its
// sources. go test -update . writes the dashboards, the list of metrics and the
// rules' copies for Kubernetes anew.
//
// The module stands outside of go.work, so that Prometheus' libraries do not
// choose the versions of the product's own. make test-monitoring runs it.
package monitoring
