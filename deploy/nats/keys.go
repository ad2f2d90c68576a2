package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"

	"github.com/nightjar-edr/nightjar/pkg/contract/access"
	"github.com/nightjar-edr/nightjar/pkg/durable"
)

// keysFile is the file with the public keys of all users, which the server's
// configuration includes from the folder it stands in.
const keysFile = "keys.conf"

// makeKeys makes the key of each user that has none and those of the gateway's
// APIs, and writes the list of public keys. A seed that is there is never written to.
func makeKeys(dir string, users []string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("folder of the keys: %w", err)
	}
	for _, user := range users {
		if err := access.MakeSeed(dir, user); err != nil {
			return err
		}
	}
	if err := makeAPIKeys(dir); err != nil {
		return err
	}
	list, err := publicKeys(dir, users)
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, keysFile), list, 0o644)
}

// publicKeys returns the content of keysFile.
func publicKeys(dir string, users []string) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString("# Public keys of Nightjar's users, written by the command keys. Nothing here is secret.\n")
	for _, user := range users {
		public, err := access.PublicKey(dir, user)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "%s: %s\n", keyVariable(user), public)
	}
	return b.Bytes(), nil
}
