package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// apiKeys are the keys of the gateway's APIs, files of the folder of the keys
// and members of one secret: the key of operator admin, and what agents are
// answered on GET /key.
var apiKeys = []string{"admin-key", "server-key"}

// makeAPIKeys makes those that are not there.
func makeAPIKeys(dir string) error {
	for _, name := range apiKeys {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, fs.ErrExist) {
			continue
		} else if err != nil {
			return err
		}
		_, err = f.WriteString(rand.Text() + rand.Text())
		if err = errors.Join(err, f.Sync(), f.Close()); err != nil { // half a key would never be replaced
			return errors.Join(fmt.Errorf("%s: %w", name, err), os.Remove(f.Name()))
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
