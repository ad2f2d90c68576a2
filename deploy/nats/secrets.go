package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"gopkg.in/yaml.v2"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
)

// seedKey is the name of a seed within its secret.
const seedKey = "seed.nk"

// manifest is a Kubernetes Secret or ConfigMap.
type manifest struct {
	APIVersion string            `yaml:"apiVersion"`
	Kind       string            `yaml:"kind"`
	Metadata   metadata          `yaml:"metadata"`
	Type       string            `yaml:"type,omitempty"`
	StringData map[string]string `yaml:"stringData,omitempty"`
	Data       map[string]string `yaml:"data,omitempty"`
}

type metadata struct {
	Name      string            `yaml:"name"`
	Namespace string            `yaml:"namespace"`
	Labels    map[string]string `yaml:"labels"`
}

// partOf returns the metadata of what belongs to Nightjar in a namespace.
func partOf(name, namespace string) metadata {
	return metadata{Name: name, Namespace: namespace, Labels: map[string]string{"app.kubernetes.io/part-of": "nightjar"}}
}

// secretName is the name of the secret with a user's seed, made of what
// Kubernetes allows.
func secretName(user string) string {
	return "nightjar-nats-" + strings.ToLower(strings.ReplaceAll(user, "_", "-"))
}

// printSecrets prints a Secret for each user with its seed, so that a pod is
// given its own and no other, a ConfigMap with the public keys for the server,
// and Secrets with the keys of the gateway's APIs and with the certificates.
func printSecrets(w io.Writer, dir, namespace string, users []string) error {
	list, err := publicKeys(dir, users)
	if err != nil {
		return err
	}
	manifests := []manifest{{APIVersion: "v1", Kind: "ConfigMap", Data: map[string]string{keysFile: string(list)},
		Metadata: partOf("nightjar-nats-keys", namespace)}}
	owner := map[string]string{"nightjar-nats-keys": "the public keys", "nightjar-nats-tls": "the certificate of the NATS servers"}
	for _, user := range users {
		name := secretName(user)
		if other, taken := owner[name]; taken {
			return fmt.Errorf("secret %s of %s: this is the name for %s, too", name, user, other)
		}
		if strings.HasSuffix(name, "-") {
			return fmt.Errorf("secret %s of %s: Kubernetes wants a letter or digit at the end of a name", name, user)
		}
		owner[name] = user
		seed, err := os.ReadFile(access.SeedFile(dir, user))
		if err != nil {
			return fmt.Errorf("key of %s: %w", user, err)
		}
		manifests = append(manifests, manifest{APIVersion: "v1", Kind: "Secret", Type: "Opaque", StringData: map[string]string{seedKey: string(seed)},
			Metadata: partOf(name, namespace)})
	}
	api, err := apiKeySecret(dir, namespace)
	if err != nil {
		return err
	}
	certificates, err := certSecrets(dir, namespace)
	if err != nil {
		return err
	}
	manifests = append(append(manifests, api), certificates...)
	for _, m := range manifests {
		text, err := yaml.Marshal(m)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "---\n%s", text); err != nil {
			return err
		}
	}
	return nil
}
