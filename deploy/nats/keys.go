package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/nats-io/nkeys"

	"github.com/nightjar-edr/nightjar/pkg/durable"
)

// keysFile is the file with the public keys of all users, which the server's
// configuration includes from the folder it stands in.
const keysFile = "keys.conf"

// seedFile returns the file of a user's seed.
func seedFile(dir, user string) string { return filepath.Join(dir, user+".nk") }

// makeKeys makes the key of each user that has none and those of the gateway's
// APIs, and writes the list of public keys. A seed that is there is never written to.
func makeKeys(dir string, users []string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("folder of the keys: %w", err)
	}
	for _, user := range users {
		if err := makeKey(seedFile(dir, user)); err != nil {
			return fmt.Errorf("key of %s: %w", user, err)
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

// makeKey makes a seed that only the owner can read, unless the file exists.
func makeKey(file string) (err error) {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil { // half a seed would never be replaced
			err = errors.Join(err, os.Remove(file))
		}
	}()
	kp, err := nkeys.CreateUser()
	if err != nil {
		return err
	}
	seed, err := kp.Seed()
	if err != nil {
		return err
	}
	if _, err := f.Write(append(seed, '\n')); err != nil {
		return err
	}
	return f.Sync()
}

// publicKeys returns the content of keysFile.
func publicKeys(dir string, users []string) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString("# Public keys of Nightjar's users, written by the command keys. Nothing here is secret.\n")
	for _, user := range users {
		seed, err := os.ReadFile(seedFile(dir, user))
		if err != nil {
			return nil, fmt.Errorf("key of %s: %w", user, err)
		}
		kp, err := nkeys.ParseDecoratedNKey(seed)
		if err != nil {
			return nil, fmt.Errorf("key of %s: %s holds no seed: %w", user, seedFile(dir, user), err)
		}
		public, err := kp.PublicKey()
		if err != nil {
			return nil, fmt.Errorf("key of %s: %w", user, err)
		}
		if !nkeys.IsValidPublicUserKey(public) {
			return nil, fmt.Errorf("key of %s: %s holds no user's seed", user, seedFile(dir, user))
		}
		fmt.Fprintf(&b, "%s: %s\n", keyVariable(user), public)
	}
	return b.Bytes(), nil
}
