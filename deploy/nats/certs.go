package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nightjar-edr/nightjar/pkg/certs"
)

// Folders of the certificates within that of the keys. Each has a certificate
// authority of its own: that of the NATS servers opens their cluster.
const (
	natsCerts = "nats-tls"
	apiCerts  = "api-tls"
)

// Names of the Services in Kubernetes and compose, which certificates are made
// for beside those that the caller names.
const natsHost = "nats"

var apiHosts = []string{"nightjar-admin", "nightjar-agent", "api-gateway"}

// makeCerts makes the certificates of the NATS servers and of the gateways,
// for the names that they have in a namespace and for hosts, which only the
// gateways have.
func makeCerts(dir, namespace string, hosts []string) error {
	local := []string{"localhost", "127.0.0.1", "::1"}
	nats := append(serviceNames(natsHost, namespace), local...)
	for _, name := range serviceNames(natsHost, namespace) {
		nats = append(nats, "*."+name) // the pods of the StatefulSet
	}
	api := append(slices.Clone(local), hosts...)
	for _, host := range apiHosts {
		api = append(api, serviceNames(host, namespace)...)
	}
	if err := certs.Make(filepath.Join(dir, natsCerts), nats, true); err != nil {
		return fmt.Errorf("certificate of the NATS servers: %w", err)
	}
	if err := certs.Make(filepath.Join(dir, apiCerts), api, false); err != nil {
		return fmt.Errorf("certificate of the gateways: %w", err)
	}
	return nil
}

// serviceNames returns the names under which a Service is found.
func serviceNames(name, namespace string) []string {
	return []string{name, name + "." + namespace, name + "." + namespace + ".svc", name + "." + namespace + ".svc.cluster.local"}
}

// splitHosts reads a comma-separated list of names and addresses.
func splitHosts(list string) (hosts []string) {
	for h := range strings.SplitSeq(list, ",") {
		if h = strings.TrimSpace(h); h != "" {
			hosts = append(hosts, h)
		}
	}
	return hosts
}

// certSecrets returns the Secrets with the certificates that the folder of the
// keys holds, with the members that cert-manager gives them. Certificates that
// come from elsewhere are none.
func certSecrets(dir, namespace string) ([]manifest, error) {
	var list []manifest
	for _, s := range []struct{ name, folder string }{{"nightjar-nats-tls", natsCerts}, {"nightjar-api-tls", apiCerts}} {
		data := map[string]string{}
		for member, file := range map[string]string{"ca.crt": certs.CAFile, "tls.crt": certs.CertFile, "tls.key": certs.KeyFile} {
			text, err := os.ReadFile(filepath.Join(dir, s.folder, file))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			} else if err != nil {
				return nil, err
			}
			data[member] = string(text)
		}
		switch len(data) {
		case 0:
			continue
		case 3:
		default:
			return nil, fmt.Errorf("certificates in %s: a file is missing; the command certs makes it", filepath.Join(dir, s.folder))
		}
		list = append(list, manifest{APIVersion: "v1", Kind: "Secret", Type: "kubernetes.io/tls", StringData: data, Metadata: partOf(s.name, namespace)})
	}
	return list, nil
}
