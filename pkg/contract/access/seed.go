package access

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/nats-io/nkeys"

	"github.com/nightjar-edr/nightjar/pkg/durable"
)

// SeedFile returns the file that holds the NKey seed of a user within a folder
// of keys.
func SeedFile(dir, user string) string { return filepath.Join(dir, user+".nk") }

// MakeSeed makes a user's seed, readable by the owner alone and on stable
// storage when it returns, unless its file exists. A file that is there is
// never written to.
func MakeSeed(dir, user string) error {
	if _, err := os.Lstat(SeedFile(dir, user)); err == nil {
		return nil
	}
	kp, err := nkeys.CreateUser()
	if err != nil {
		return fmt.Errorf("nkey of %s: %w", user, err)
	}
	seed, err := kp.Seed()
	if err != nil {
		return fmt.Errorf("nkey of %s: %w", user, err)
	}
	if err := durable.Create(SeedFile(dir, user), append(seed, '\n'), 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("nkey of %s: %w", user, err)
	}
	return nil
}

// PublicKey returns the public NKey of a user whose seed is in a folder of
// keys. Its error names the file and shows nothing of what is in it.
func PublicKey(dir, user string) (string, error) {
	file := SeedFile(dir, user)
	seed, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("nkey of %s: %w", user, err)
	}
	kp, err := nkeys.ParseDecoratedNKey(seed)
	if err != nil {
		return "", fmt.Errorf("nkey of %s: %s holds no seed: %w", user, file, err)
	}
	public, err := kp.PublicKey()
	if err != nil {
		return "", fmt.Errorf("nkey of %s: %w", user, err)
	}
	if !nkeys.IsValidPublicUserKey(public) {
		return "", fmt.Errorf("nkey of %s: %s holds no user's seed", user, file)
	}
	return public, nil
}
