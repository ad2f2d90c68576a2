// Package manifests holds what is shipped for containers - deploy/config,
// deploy/nats, k8s, the Helm chart, the compose project, the systemd unit - to
// what the programs really understand.
//
// Its tests render every overlay and the chart, decode each object strictly,
// and check that flags, ports, files, secrets and their keys exist in the code;
// and they start all programs with the shipped configuration. The module
// stands outside of go.work, so that the libraries it needs do not choose the
// versions of the product's own. make test-manifests runs it.
package manifests
