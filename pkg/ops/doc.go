// Package ops serves what operators and Kubernetes look at: /metrics,
// /healthz (the process answers) and /readyz (caught up and able to work).
package ops
