package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/nightjar-edr/nightjar/pkg/durable"
)

// apiKeys are the keys of the gateway's APIs, files of the folder of the keys
// and members of one secret: the key of operator admin, and what agents are
// answered on GET /key.
var apiKeys = []string{"admin-key", "server-key"}

// makeAPIKeys makes those that are not there.
func makeAPIKeys(dir string) error {
	for _, name := range apiKeys {
		err := durable.Create(filepath.Join(dir, name), []byte(rand.Text()+rand.Text()), 0o600)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// apiKeySecret returns the secret with the keys of the gateway's APIs.
func apiKeySecret(dir, namespace string) (manifest, error) {
	m := manifest{APIVersion: "v1", Kind: "Secret", Type: "Opaque", StringData: map[string]string{}, Metadata: partOf("nightjar-admin", namespace)}
	for _, name := range apiKeys {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return m, fmt.Errorf("%s: %w; the command keys makes it", name, err)
		}
		m.StringData[name] = string(text)
	}
	return m, nil
}
